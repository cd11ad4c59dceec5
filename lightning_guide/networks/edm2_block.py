"""The residual block of the EDM2 U-Net, in the flavours of its encoder and its decoder.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.attention import SelfAttention
from lightning_guide.networks.magnitude_preserving import SILU_RMS, MPConv, MPLinear, mp_sum_weights, pixel_norm

__all__ = ["EDM2Block"]


class EDM2Block(nn.Module):
    """One residual block with optional resampling and attention, (B, in, H, W) -> (B, out, H', W').

    The flavours differ in the main path. The encoder projects it to the new number of channels first (where the
    number changes) and normalizes each pixel; the decoder projects it only just before the sum, and its residual
    branch reads all the incoming channels. The last `skip_channels` of the incoming ones come from the encoder.

    What the description multiplies activations by stands in the weights beside it: 1 / 0.596 of an `mp_silu` in the
    convolution that reads it, the weights of the `mp_sum` in the convolutions that end in it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        flavour: Literal["encoder", "decoder"],
        resample: Literal["keep", "down", "up"] = "keep",
        skip_channels: int = 0,
        attention: bool = False,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        self.flavour = flavour
        self.resample = resample
        self.skip_channels = skip_channels
        self.out_channels = out_channels
        self.clip_act = clip_act
        self.own, other = mp_sum_weights(res_balance)
        self.projection: MPConv | None = None
        if in_channels != out_channels:
            self.projection = MPConv(in_channels, out_channels, kernel=1, scale=1 if flavour == "encoder" else self.own)
        inside = out_channels if flavour == "encoder" else in_channels
        self.residual_in = MPConv(inside, out_channels, kernel=3, scale=1 / SILU_RMS)
        self.modulation = MPLinear(embedding_channels, out_channels, learned_gain=True)
        self.dropout = nn.Dropout(dropout)
        self.residual_out = MPConv(out_channels, out_channels, kernel=3, scale=other / SILU_RMS)
        self.attention = SelfAttention(out_channels, balance=attn_balance) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`(B, out, H', W')` of `x` (B, in, H, W) and `embedding` (B, E)."""
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.flavour == "encoder":
            x = pixel_norm(self.projection(x) if self.projection is not None else x)
        in_place = not torch.is_grad_enabled()  # what is this block's own need not be kept for a backward pass
        gain = (1 + self.modulation(embedding))[:, :, None, None]
        y = self.residual_in(F.silu(x))
        y = F.silu(y.mul_(gain) if in_place else y * gain.to(y.dtype), inplace=in_place)
        y = self.residual_out(self.dropout(y))
        if self.flavour == "decoder" and self.projection is not None:
            x = y.add_(self.projection(x))
        else:
            x = y.add_(x, alpha=self.own)
        if self.attention is not None:
            x = self.attention(x)
        return F.hardtanh(x, -self.clip_act, self.clip_act, inplace=in_place)
