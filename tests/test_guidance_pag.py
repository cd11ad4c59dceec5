"""Attention cores of the negative: identity and its ablation, scaled queries, no attention at all."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

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
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.networks import CosineAttention
from lightning_guide.networks.dit_block import TransformerBlock
from tests.small_networks import LABELS, SIGMA, noisy_images, trajectory, transformer, unet

GRID = (3, 4)


def qkv(tokens: int = 12, heads: int = 2, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 3, heads, tokens, d, dtype=torch.float64, generator=generator)
    return q, k, v


def attend(perturbation: Perturbation, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Result of the core of the negative for q, k and v."""
    return perturbation.replace(CosineAttention(), trajectory())(q, k, v, GRID)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_identity_returns_the_values() -> None:
    q, k, v = qkv()
    assert torch.equal(attend(IdentityAttention(), q, k, v), v)


@pytest.mark.parametrize(
    "perturbation",
    [
        SoftIdentityAttention(0.0),
        RandomMask(0.0),
        OffDiagonalMask(0.0),
        NoisyAttention(0.0),
        BlurredAttention(0.0),
        BlurredAttention(1 / 6),
        ScaledQueries(1.0),
    ],
    ids=lambda p: type(p).__name__,
)
def test_the_neutral_setting_is_the_module_itself(perturbation: Perturbation) -> None:
    core = CosineAttention()
    assert perturbation.replace(core, trajectory()) is core


@pytest.mark.parametrize(
    "perturbation",
    [IdentityAttention(), SoftIdentityAttention(0.3), OffDiagonalMask(0.7), BlurredAttention(2.0), ScaledQueries(0.1)],
    ids=lambda p: type(p).__name__,
)
def test_a_single_token_is_unchanged_by_every_perturbation(perturbation: Perturbation) -> None:
    """The map is diagonal already."""
    q, k, v = qkv(tokens=1)
    assert torch.equal(attend(perturbation, q, k, v), CosineAttention()(q, k, v, (1, 1)))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_soft_identity_is_the_line_between(alpha: float) -> None:
    q, k, v = qkv()
    A = (1 - alpha) * attention_map(q, k) + alpha * torch.eye(12, dtype=torch.float64)
    close(attend(SoftIdentityAttention(alpha), q, k, v), A @ v)


def test_soft_identity_ends_at_the_identity() -> None:
    q, k, v = qkv()
    assert torch.equal(attend(SoftIdentityAttention(1.0), q, k, v), v)
    model = transformer()
    soft, hard = (Perturbed([p], positive=model) for p in (SoftIdentityAttention(1.0), IdentityAttention()))
    assert torch.equal(soft(noisy_images(), SIGMA, LABELS), hard(noisy_images(), SIGMA, LABELS))


@pytest.mark.parametrize("probability", [0.2, 0.8])
@pytest.mark.parametrize("kind", [RandomMask, OffDiagonalMask])
def test_masked_entry_is_a_logit_of_minus_infinity(kind: type[RandomMask], probability: float) -> None:
    q, k, v = qkv()
    kept = trajectory().seeds.uniform("attention mask", (2, 12, 12)) >= probability
    if kind is OffDiagonalMask:
        kept |= torch.eye(12, dtype=torch.bool)
    logits = (q @ k.mT / math.sqrt(5)).masked_fill(~kept, -math.inf)
    close(attend(kind(probability), q, k, v), logits.softmax(-1).nan_to_num(0.0) @ v)
    assert (~kept).double().mean() == pytest.approx(probability, abs=0.1)


def test_mask_of_all_but_the_diagonal_is_the_identity() -> None:
    q, k, v = qkv()
    assert torch.equal(attend(OffDiagonalMask(1.0), q, k, v), v)
    peaked = attend(OffDiagonalMask(1.0), 1e4 * q, k, v)  # most of the diagonal underflows to 0
    assert (torch.diagonal(attention_map(1e4 * q, k), dim1=-2, dim2=-1) == 0).any()
    assert torch.equal(peaked, v)


def test_fully_masked_row_returns_zeros() -> None:
    q, k, v = qkv()
    assert torch.equal(attend(RandomMask(1.0), q, k, v), torch.zeros_like(v))


def test_masks_are_drawn_for_each_call_head_and_sample() -> None:
    q, k, v = qkv(tokens=6)
    same = torch.zeros_like(q), torch.zeros_like(k), v[:1, :1].expand_as(v)
    core = RandomMask(0.5).replace(CosineAttention(), trajectory())
    results = torch.cat([core(*same, GRID).flatten(0, 1) for _ in range(2)])  # (2 calls * 3 samples * 2 heads, 6, 5)
    assert len(torch.unique(results, dim=0)) == 12


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_noise_is_added_to_the_map(scale: float) -> None:
    q, k, v = qkv()
    n = trajectory().seeds.normal("attention noise", (2, 12, 12)).double()
    close(attend(NoisyAttention(scale), q, k, v), (attention_map(q, k) + scale * n) @ v)


def test_the_map_is_blurred_as_an_image() -> None:
    """sigma = 0.8: 5 taps by the kernel rule, reflected at the borders, and rows of sum 1."""
    q, k, v = qkv()
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=torch.float64) / 0.8) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    A = F.pad(attention_map(q, k), (2, 2, 2, 2), mode="reflect").flatten(0, 1)[:, None]
    A = F.conv2d(A, kernel[None, None]).reshape(3, 2, 12, 12)
    close(attend(BlurredAttention(0.8), q, k, v), A / A.sum(-1, keepdim=True) @ v)
    uniform = v.mean(-2, keepdim=True).expand_as(v)
    close(attend(BlurredAttention(math.inf), q, k, v), uniform)


@pytest.mark.parametrize("tau", [0.01, 0.5, 3.0])
def test_scaled_queries_change_the_temperature(tau: float) -> None:
    q, k, v = qkv()
    close(attend(ScaledQueries(tau), q, k, v), (tau * (q @ k.mT) / math.sqrt(5)).softmax(-1) @ v)


def test_queries_of_zero_attend_to_all_alike() -> None:
    q, k, v = qkv()
    close(attend(ScaledQueries(0.0), q, k, v), v.mean(-2, keepdim=True).expand_as(v))


def test_skipped_attention_leaves_the_block_without_its_branch() -> None:
    model = transformer()
    with torch.no_grad():
        model.network.get_parameter("blocks.2.attention.output.bias").zero_()
    block = model.network.get_submodule("blocks.2")
    assert isinstance(block, TransformerBlock)
    x, e = torch.randn(2, 16, 16), torch.randn(2, 16)
    _, _, _, shift, scale, gate = block.modulation(e)
    expected = x + gate * block.mlp(block.norm(x) * (1 + scale) + shift)
    tree = Perturbed([SkipAttention()], positive=model).network(trajectory()).network
    torch.testing.assert_close(tree.get_submodule("blocks.2")(x, e, (4, 4)), expected)


def test_skipped_attention_of_the_unet_shrinks_the_stream() -> None:
    model = unet()
    tree = Perturbed([SkipAttention()], positive=model).network(trajectory()).network
    x = torch.randn(2, 16, 4, 4)
    attention = tree.get_submodule("decoder.4x4_in0.attention")
    torch.testing.assert_close(attention(x), x * 0.7 / math.hypot(0.7, 0.3))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha between 0"):
        SoftIdentityAttention(1.1)
    for kind in (RandomMask, OffDiagonalMask):
        with pytest.raises(ValueError, match=f"{kind.__name__} needs a probability between 0"):
            kind(-0.1)
    with pytest.raises(ValueError, match="NoisyAttention needs a finite scale"):
        NoisyAttention(math.nan)
    with pytest.raises(ValueError, match="BlurredAttention needs sigma"):
        BlurredAttention(-1.0)
    for tau in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="ERG needs a finite tau"):
            ScaledQueries(tau)


PERTURBATIONS: list[Callable[..., Perturbation]] = [
    IdentityAttention, SoftIdentityAttention, RandomMask, NoisyAttention, BlurredAttention, ScaledQueries,
    SkipAttention, BlurredQueries,
]  # fmt: skip


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_layers_that_are_not_attention_cores_are_refused(kind: Callable[..., Perturbation]) -> None:
    refusal = "replaces attention cores; {} is not one, those of this .* are .*attention.core"
    for network, name in ((unet().network, "encoder.4x4_block0"), (transformer().network, "blocks.1.attention")):
        with pytest.raises(ValueError, match=refusal.format(name)):
            kind(layers=[name]).chosen(network)
        assert kind(layers=["*.core"]).chosen(network)
