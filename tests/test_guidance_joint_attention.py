"""Perturbed cores in joint attention: only attention between tokens of the image is perturbed, not that to texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.guidance.attention import AttentionPerturbation
from lightning_guide.guidance.negatives import (
    BlurredAttention,
    BlurredQueries,
    IdentityAttention,
    NoisyAttention,
    OffDiagonalMask,
    RandomMask,
    ScaledQueries,
    SkipAttention,
    SoftIdentityAttention,
)
from lightning_guide.guidance.negatives.sag_masks import ObservedAttention
from lightning_guide.networks import CosineAttention
from tests.small_networks import trajectory

N, M, SIZE = 12, 17, (3, 4)
EYE = torch.eye(N, dtype=torch.bool)


def tokens(keys: int = M) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, generator=generator).double() for n in (N, keys, keys))
    return q, k, v


def attend(perturbation: AttentionPerturbation, keys: int = M) -> Tensor:
    return perturbation.replace(CosineAttention(), trajectory())(*tokens(keys), SIZE)


def masked(kept: Tensor) -> Tensor:
    """Attention without the entries of the image that are not `kept`; texts are."""
    q, k, v = tokens()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=F.pad(kept, (0, M - N), value=True))


def test_identity_keeps_the_token_itself_and_the_texts() -> None:
    expected = masked(EYE)
    torch.testing.assert_close(attend(IdentityAttention()), expected)
    torch.testing.assert_close(attend(OffDiagonalMask(1.0)), expected)
    torch.testing.assert_close(attend(SoftIdentityAttention(1.0)), expected)
    middle = torch.lerp(masked(torch.ones_like(EYE)), expected, 0.3)
    torch.testing.assert_close(attend(SoftIdentityAttention(0.3)), middle)
    assert not torch.allclose(expected, tokens()[2][..., :N, :], atol=0.1)  # texts have their part


def test_masks_hide_tokens_of_the_image_alone() -> None:
    kept = trajectory().seeds.uniform("attention mask", (2, N, N)) >= 0.5
    torch.testing.assert_close(attend(RandomMask(0.5)), masked(kept))
    torch.testing.assert_close(attend(OffDiagonalMask(0.5)), masked(kept | EYE))
    torch.testing.assert_close(attend(RandomMask(1.0)), masked(torch.zeros_like(EYE)))


def test_noise_is_added_in_the_columns_of_the_image() -> None:
    q, k, v = tokens()
    noise = trajectory().seeds.normal("attention noise", (2, N, N)).double()
    plain = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(NoisyAttention(0.2)), plain + 0.2 * noise @ v[..., :N, :])


def test_infinite_blur_is_the_mean_of_the_queries_maps_with_texts_apart() -> None:
    q, k, v = tokens()
    A = (q @ k.mT / 8**0.5).softmax(-1).mean(-2, keepdim=True)
    A = torch.cat([A[..., :N].mean(-1, keepdim=True).expand(3, 2, 1, N), A[..., N:]], -1)
    torch.testing.assert_close(attend(BlurredAttention(float("inf"))), (A @ v).expand(3, 2, N, 8))


@pytest.mark.parametrize("perturbation", [ScaledQueries(0.0), BlurredQueries()])
def test_changed_queries_attend_to_the_texts_as_well(perturbation: AttentionPerturbation) -> None:
    q, k, v = tokens()
    q = 0 * q if isinstance(perturbation, ScaledQueries) else q.mean(-2, keepdim=True).expand_as(q)
    torch.testing.assert_close(attend(perturbation), F.scaled_dot_product_attention(q, k, v))


def test_skipped_attention_is_zero_for_the_image() -> None:
    assert torch.equal(attend(SkipAttention()), torch.zeros(3, 2, N, 8, dtype=torch.double))


@pytest.mark.parametrize("keys", [N, M])
def test_observed_attention_is_one_on_average(keys: int) -> None:
    observation = ObservedAttention(layers=None)
    torch.testing.assert_close(attend(observation, keys), F.scaled_dot_product_attention(*tokens(keys)))
    received = observation.records[0].received
    assert received.shape == (3, 1, *SIZE)
    torch.testing.assert_close(received.mean((1, 2, 3)), torch.ones(3, dtype=torch.double))
    assert ((received > 1).any((1, 2, 3)) & (received < 1).any((1, 2, 3))).all()
