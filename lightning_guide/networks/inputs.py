"""Network inputs: one-hot labels, embeddings of tokens, and checks of conditions and image sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.conditioning import check_labels, token_mask
from lightning_guide.networks.attention import TextReader, plain_attention
from lightning_guide.networks.magnitude_preserving import MPLinear
from lightning_guide.networks.rms_norm import normalize

__all__ = ["CrossAttention", "MeanTokenEmbedding", "check_size", "check_tokens", "one_hot"]


def one_hot(condition: Tensor | None, num_classes: int, *, batch: int, like: Tensor) -> Tensor:
    """Return one-hot rows `(batch, num_classes)` of the labels `condition` (batch,), in dtype and device of `like`.

    The label -1, and None for the whole batch, give rows of zeros.

    Raises:
        ValueError: as `conditioning.check_labels`.
    """
    if condition is None:
        return like.new_zeros(batch, num_classes)
    labels = check_labels(condition, num_classes, batch=batch)
    classes = torch.arange(num_classes, device=condition.device)
    return (labels[:, None] == classes).to(device=like.device, dtype=like.dtype)


def check_tokens(condition: Tensor | None, channels: int, *, batch: int, like: Tensor) -> Tensor:
    """Return tokens `(batch, L, channels)` in dtype and device of `like`; None gives one token of zeros.

    Raises:
        ValueError: if `condition` is anything other than floats (batch, L, channels).
    """
    if condition is None:
        return like.new_zeros(batch, 1, channels)
    expected = condition.ndim == 3 and (len(condition), condition.shape[2]) == (batch, channels)
    if not (expected and condition.is_floating_point()):
        raise ValueError(
            f"the condition has shape {tuple(condition.shape)} and type {condition.dtype}; expected embeddings "
            f"({batch}, tokens, {channels}) of floats for a network with token_channels={channels}"
        )
    return condition.to(like)


class MeanTokenEmbedding(nn.Module):
    """Magnitude-preserving embedding W normalize(mean of the tokens), (B, L, C) -> (B, out); zeros without tokens.

    The mean is over all tokens that are not padding. The order of the tokens has no influence.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear = MPLinear(channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `(B, out)` for `tokens` (B, L, C)."""
        count = token_mask(tokens).sum(dim=1, keepdim=True).clamp(min=1)
        return self.linear(normalize(tokens.sum(dim=1) / count, dim=-1))


class CrossAttention(nn.Module):
    """Cross-attention from N image tokens to L text tokens: x + output(softmax(q k^T / sqrt(d)) v).

    Chen et al. 2023 (PixArt-alpha), https://arxiv.org/abs/2310.00426, section 2.3, where the output is initially zero.
    One learned token is added to the text tokens; it represents "no condition" if all others are padding.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.nothing = nn.Parameter(torch.randn(channels) * 0.02)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.reader = TextReader()
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return `(B, N, C)` for `x` (B, N, C) and `tokens` (B, L, C)."""
        B, N, C = x.shape
        mask = F.pad(token_mask(tokens), (1, 0), value=True)  # (B, 1 + L)
        tokens = torch.cat([self.nothing.to(tokens).expand(B, 1, C), tokens], dim=1)
        q = self.q(self.norm(x)).reshape(B, N, self.heads, -1).transpose(1, 2)  # (B, heads, N, d)
        k, v = self.kv(tokens).reshape(B, tokens.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.reader(plain_attention, q, k, v, mask[:, None, None], own=1)
        return x + self.output(y.transpose(1, 2).reshape(B, N, C))


def check_size(network: str, height: int, width: int, *, stride: int) -> None:
    """Refuse a size that is not a positive multiple of the total `stride`.

    Raises:
        ValueError: naming the `network` and the size.
    """
    if height % stride or width % stride or not (height and width):
        raise ValueError(
            f"{network}: the size {height}x{width} cannot be halved at every level; "
            f"height and width must be multiples of {stride}"
        )
