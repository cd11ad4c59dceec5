"""Residual block of the EDM2 U-Net, with encoder and decoder variants.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.attention import SelfAttention
from lightning_guide.networks.magnitude_preserving import SILU_RMS, MPConv, MPLinear, mp_sum_weights
from lightning_guide.networks.rms_norm import pixel_norm

__all__ = ["EDM2Block"]


class _Modulated(torch.autograd.Function):
    """y (1 + gain) in one kernel, with the cheap gradient of the product: y (B, C, H, W), gain (B, C, 1, 1)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(y, gain)
        return torch.addcmul(y, y, gain)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        y, gain = ctx.saved_tensors
        return torch.addcmul(gradients[0], gradients[0], gain), (gradients[0] * y).sum((2, 3), keepdim=True)


class EDM2Block(nn.Module):
    """EDM2 residual block with optional resampling and attention, (B, in, H, W) -> (B, out, H', W').

    The variants differ in the main path. The encoder projects it to the new number of channels first (if the number
    changes) and normalizes each pixel; the decoder projects it just before the sum, and its residual branch reads all
    input channels. The last `skip_channels` of the input channels come from the encoder.

    Constant factors of activations are part of the weights: 1 / 0.596 of an `mp_silu` is in the convolution after it,
    the weights of the `mp_sum` are in the convolutions before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        variant: Literal["encoder", "decoder"],
        resample: Literal["keep", "down", "up"] = "keep",
        skip_channels: int = 0,
        attention: bool = False,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.resample = resample
        self.skip_channels = skip_channels
        self.out_channels = out_channels
        self.clip_act = clip_act
        self.own, other = mp_sum_weights(res_balance)
        self.projection: MPConv | None = None
        if in_channels != out_channels:
            self.projection = MPConv(in_channels, out_channels, kernel=1, scale=1 if variant == "encoder" else self.own)
        inside = out_channels if variant == "encoder" else in_channels
        self.residual_in = MPConv(inside, out_channels, kernel=3, scale=1 / SILU_RMS)
        self.modulation = MPLinear(embedding_channels, out_channels, learned_gain=True)
        self.dropout = nn.Dropout(dropout)
        self.residual_out = MPConv(out_channels, out_channels, kernel=3, scale=other / SILU_RMS)
        self.attention = SelfAttention(out_channels, balance=attn_balance) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return `(B, out, H', W')` for `x` (B, in, H, W) and `embedding` (B, E)."""
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.variant == "encoder":
            x = pixel_norm(self.projection(x) if self.projection is not None else x)
        in_place = not torch.is_grad_enabled()  # without a backward pass, tensors made in this block may be overwritten
        y = self.residual_in(F.silu(x))
        gain = self.modulation(embedding)[:, :, None, None].to(y.dtype)
        y = y.addcmul_(y, gain) if in_place else _Modulated.apply(y, gain)
        y = F.silu(y, inplace=in_place)
        y = self.residual_out(self.dropout(y))
        if self.variant == "decoder" and self.projection is not None:
            x = y.add_(self.projection(x))
        else:
            x = y.add_(x, alpha=self.own)
        if self.attention is not None:
            x = self.attention(x)
        return F.hardtanh(x, -self.clip_act, self.clip_act, inplace=in_place)
