"""Blocks of the "DDPM++" network: residuals divided by sqrt(2), with resampling and optional attention.

Ho et al. 2020, https://arxiv.org/abs/2006.11239; Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix H.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.attention import AttentionCore, CosineAttention

__all__ = ["DDPMBlock", "EXIT_SCALE", "ImageAttention", "group_norm", "xavier_init"]


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


EXIT_SCALE = 1e-5  # factor of the initial weights in the last layer of every branch


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalization with 32 groups, or with groups of four channels if that gives fewer groups."""
    return nn.GroupNorm(max(min(32, channels // 4), 1), channels, eps=1e-6)


def xavier_init(layer: Layer, scale: float = 1.0) -> Layer:
    """Initialize a layer with Xavier's uniform weights times `scale` and a zero bias; return it."""
    nn.init.xavier_uniform_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ImageAttention(nn.Module):
    """Single-head self-attention of images, (x + output(core(q, k, v))) / sqrt(2), with a replaceable core."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = xavier_init(nn.Conv2d(channels, 3 * channels, 1), math.sqrt(0.2))
        self.core: AttentionCore = CosineAttention()
        self.output = xavier_init(nn.Conv2d(channels, channels, 1), EXIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, H, W)` for `x` (B, C, H, W)."""
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, 1, C, H * W).transpose(-1, -2).unbind(1)  # each (B, 1, N, C)
        y = self.core(q, k, v, (H, W)).squeeze(1).mT.reshape(B, C, H, W)
        return (x + self.output(y)) / math.sqrt(2)


class DDPMBlock(nn.Module):
    """DDPM++ block: (skip(x) + conv(silu(norm(conv(silu(norm(x))) + linear(embedding))))) / sqrt(2), then attention.

    Attention is optional. The first convolution and the skip resample. The skip is a 1x1 convolution if channels or
    size change.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        resample: Literal["keep", "down", "up"] = "keep",
        skip_channels: int = 0,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.resample, self.skip_channels = resample, skip_channels
        self.norm_in = group_norm(in_channels)
        self.residual_in = xavier_init(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.modulation = xavier_init(nn.Linear(embedding_channels, out_channels))
        self.norm_out = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.residual_out = xavier_init(nn.Conv2d(out_channels, out_channels, 3, padding=1), EXIT_SCALE)
        same = in_channels == out_channels and resample == "keep"
        self.projection = None if same else xavier_init(nn.Conv2d(in_channels, out_channels, 1))
        self.attention = ImageAttention(out_channels) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return `(B, out, H', W')` for `x` (B, in, H, W) and `embedding` (B, E)."""
        y = self.residual_in(self._resample(F.silu(self.norm_in(x))))
        y = F.silu(self.norm_out(y + self.modulation(embedding)[:, :, None, None]))
        y = self.residual_out(self.dropout(y))
        x = self._resample(x)
        x = ((x if self.projection is None else self.projection(x)) + y) / math.sqrt(2)
        return x if self.attention is None else self.attention(x)

    def _resample(self, x: Tensor) -> Tensor:
        """Halve or double the size, by the mean of 2x2 or by repetition."""
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x
