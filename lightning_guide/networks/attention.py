"""Cosine self-attention of the EDM2 U-Net; its core is a separate, replaceable submodule, as is what reads texts.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.magnitude_preserving import MPConv, mp_sum_weights
from lightning_guide.networks.rms_norm import normalize

__all__ = [
    "Attend",
    "AttentionCore",
    "CosineAttention",
    "SelfAttention",
    "TextReader",
    "WholeText",
    "attention_heads",
    "plain_attention",
]


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q (B, heads, N, d), k and v (B, heads, M, d), mask (B, 1 or heads, 1 or N, M) or None) -> (B, heads, N, d)."""


def attention_heads(channels: int, channels_per_head: int = 64) -> int:
    """Return the number of heads: the largest divisor of `channels` that gives each head `channels_per_head` or more.

    At least 1, so that narrow networks have attention; channels // 64 for every multiple of 64.
    """
    most = max(1, channels // channels_per_head)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


class AttentionCore(nn.Module, ABC):
    """Base of attention cores, which compute A v with an attention map A from queries, keys and values.

    Every self-attention of the networks has a core, named ``attention.core``. A perturbation of attention (identity
    map, blurred queries, ...) replaces it by another core. In joint attention with M > N keys, the core computes the N
    rows of the image.
    """

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Attention over N = height * width tokens in row-major order.

        Args:
            q: queries `(B, heads, N, d)`.
            k: keys `(B, heads, M, d)`, M >= N: those of the tokens themselves, then those of texts.
            v: values `(B, heads, M, d)`.
            size: (height, width) of the token grid, for cores that act on neighborhoods; None for tokens without one.

        Returns:
            `(B, heads, N, d)`.
        """


class CosineAttention(AttentionCore):
    """Attention core softmax(q k^T / sqrt(d)) v, without parameters.

    Queries, keys and values have unit RMS over d, so that q k^T / sqrt(d) is sqrt(d) times the cosine.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Return `(B, heads, N, d)`, as `AttentionCore.forward`."""
        return F.scaled_dot_product_attention(q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, as `Attend`; `mask`: True or 0 for keys that count."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class TextReader(nn.Module):
    """How an attention reads texts: all of their keys and values at once. Without parameters.

    Every cross-attention and joint attention has one, named ``reader``, which methods replace.
    """

    def forward(
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, own: int = 0
    ) -> Tensor:
        """Return what tokens of the image read, `(B, heads, N, d)`.

        Args:
            attend: the attention itself.
            q: queries of the image `(B, heads, N, d)`.
            k: keys `(B, heads, own + L, d)`: `own` ones that belong to no text, then those of texts.
            v: values, as the keys.
            mask: that of `attend`.
            own: number of keys of no text: those of the image in joint attention.
        """
        return attend(q, k, v, mask)

    def texts(self, q: Tensor, k: Tensor, v: Tensor, *, own: int) -> Tensor:
        """Return what the L tokens of texts read in joint attention, `(B, heads, L, d)`, as `forward`."""
        return plain_attention(q, k, v)


class WholeText(nn.Module):
    """How a part of a network gets the tokens of one text, of which it does more than attend to them. No parameters.

    Methods that give the `TextReader` of a network two texts replace it.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `tokens` (B, L, C)."""
        return tokens


class SelfAttention(nn.Module):
    """Magnitude-preserving self-attention: mp_sum(x, output(core(q, k, v)), balance) for feature maps (B, C, H, W).

    The rows of `qkv` factorize as (head, channel, {q, k, v}), the last fastest, as in the published networks. The
    weight of the second term of the sum is part of the scale of `output`.
    """

    def __init__(self, channels: int, *, balance: float = 0.3) -> None:
        super().__init__()
        self.heads = attention_heads(channels)
        self.own, other = mp_sum_weights(balance)
        self.qkv = MPConv(channels, 3 * channels, kernel=1)
        self.core: AttentionCore = CosineAttention()
        self.output = MPConv(channels, channels, kernel=1, scale=other)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, H, W)` for `x` (B, C, H, W)."""
        B, C, H, W = x.shape
        qkv = self.qkv(x).reshape(B, self.heads, C // self.heads, 3, H * W)  # (B, heads, d, 3, N)
        # each (B, heads, N, d); with this memory layout the core is about twice as fast on a CPU
        q, k, v = normalize(qkv.permute(3, 0, 1, 4, 2), dim=-1, layout=torch.contiguous_format)
        y = self.core(q, k, v, (H, W)).transpose(1, 2)  # (B, N, heads, d)
        return self.output(y.reshape(B, H, W, C).movedim(-1, 1)).add_(x, alpha=self.own)
