"""Cosine attention against explicit softmax attention, number of heads, replaceable core."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.networks.attention import AttentionCore, CosineAttention, SelfAttention, attention_heads
from lightning_guide.networks.magnitude_preserving import mp_sum
from lightning_guide.networks.rms_norm import normalize


@pytest.mark.parametrize(
    ("channels", "heads"), [(8, 1), (32, 1), (64, 1), (96, 1), (127, 1), (128, 2), (160, 2), (200, 2), (1792, 28)]
)
def test_number_of_heads_at_every_width(channels: int, heads: int) -> None:
    assert attention_heads(channels) == heads
    assert channels % heads == 0


def test_core_equals_softmax_attention(generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 4, 15, 8, generator=generator, dtype=torch.float64)
    expected = (q @ k.mT / math.sqrt(8)).softmax(dim=-1) @ v
    torch.testing.assert_close(CosineAttention()(q, k, v, (3, 5)), expected)


def test_self_attention_equals_its_formula_with_q_k_v_fastest(generator: torch.Generator) -> None:
    attention = SelfAttention(128, balance=0.3).double()
    x = torch.randn(2, 128, 3, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        qkv = attention.qkv(x).flatten(2)  # (2, 384, 15)
        heads = []
        for head in range(2):
            rows = qkv[:, head * 192 : (head + 1) * 192]
            q, k, v = (normalize(rows[:, i::3], dim=1) for i in range(3))  # (2, 64, 15)
            weights = (q.mT @ k / math.sqrt(64)).softmax(dim=-1)
            heads.append(v @ weights.mT)
        matrix = normalize(attention.output.weight[:, :, 0, 0]) / math.sqrt(128)
        expected = mp_sum(x, torch.einsum("oc,bcn->bon", matrix, torch.cat(heads, dim=1)).reshape(2, 128, 3, 5), 0.3)
        torch.testing.assert_close(attention(x), expected)


class Identity(AttentionCore):
    """Identity attention of PAG, which records its arguments."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Return v."""
        self.seen = (q, k, v, size)
        return v


def test_core_is_replaceable_and_receives_normalized_tokens_and_grid(generator: torch.Generator) -> None:
    attention = SelfAttention(64)
    core = Identity()
    attention.core = core
    x = torch.randn(2, 64, 3, 5, generator=generator)
    y = attention(x)
    q, k, v, grid = core.seen
    assert grid == (3, 5)
    for part in (q, k, v):
        assert part.shape == (2, 1, 15, 64)
        torch.testing.assert_close(part.square().mean(-1).sqrt(), torch.ones(2, 1, 15), rtol=0, atol=1e-3)
    token = v[1, 0, 7].reshape(1, 64, 1, 1)  # row-major: row 1, column 2
    expected = x[1:, :, 1:2, 2:3] * (0.7 / math.hypot(0.7, 0.3)) + attention.output(token)
    torch.testing.assert_close(y[1:, :, 1:2, 2:3], expected)


def test_attention_depends_on_the_tokens(generator: torch.Generator) -> None:
    attention = SelfAttention(16)
    x = torch.randn(1, 16, 4, 4, generator=generator)
    shuffled = x.flatten(2)[:, :, torch.randperm(16, generator=generator)].reshape(x.shape)
    assert not torch.allclose(attention(x), attention(shuffled))
    torch.testing.assert_close(attention(x).sum((2, 3)), attention(shuffled).sum((2, 3)), rtol=1e-4, atol=1e-4)
