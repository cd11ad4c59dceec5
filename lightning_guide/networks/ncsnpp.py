"""The "NCSN++" network of EDM: DDPM++ with Fourier features, a wider resampling filter and residuals of the image.

Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix H (progressive input "residual"; filters as in StyleGAN2,
which blurs before a convolution of stride 2); Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 8 and the
its text, which name these three differences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.ddpmpp import DDPMpp, Waves
from lightning_guide.networks.ddpmpp_block import DDPMBlock, xavier_init

__all__ = ["FourierWaves", "NCSNpp"]


class FourierWaves(Waves):
    """cos and sin of 2 pi c_noise f with `model_channels` random frequencies f = 16 N(0, 1), a buffer."""

    frequencies: Tensor

    def __init__(self, model_channels: int) -> None:
        super().__init__(2 * model_channels)
        self.register_buffer("frequencies", 16 * torch.randn(model_channels))

    def angles(self, c_noise: Tensor) -> Tensor:
        """Return the arguments of cos and sin, (B, model_channels)."""
        dtype = torch.promote_types(c_noise.dtype, torch.float32)
        return torch.outer(c_noise.to(dtype), 2 * math.pi * self.frequencies.to(dtype))


class FilteredBlock(DDPMBlock):
    """`DDPMBlock` that resamples by the filter [1, 3, 3, 1], the image being zero outside."""

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return super()._resample(_blurred(x))
        return _blurred(super()._resample(x)) if self.resample == "up" else x


class FilteredConv(nn.Conv2d):
    """3x3 convolution of stride 2 after the filter [1, 3, 3, 1]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, out, H / 2, W / 2)` for `x` (B, in, H, W)."""
        return super().forward(F.avg_pool2d(_blurred(F.pad(x, (1, 1, 1, 1))), 2, stride=1))


class NCSNpp(DDPMpp):
    """NCSN++ U-Net F(x, c_noise, embedding), with the arguments, names and parts of `DDPMpp`.

    A second, linear path takes the image to each lower level: after the block that halves, with y_0 = x,
    y_l = h_l = (block(h_l-1) + conv(y_l-1)) / sqrt(2).
    """

    waves_type = FourierWaves
    block_type = FilteredBlock

    def extend_encoder(self) -> None:
        """Add the convolutions of the second path, under the names of the blocks that halve."""
        self.image_residuals, channels = nn.ModuleDict(), self.data_shape[0]
        for name, block in self.encoder.items():
            assert isinstance(block, FilteredBlock)
            if block.resample == "down":
                self.image_residuals[name] = xavier_init(FilteredConv(channels, block.residual_in.out_channels))
                channels = block.residual_in.out_channels

    def encode(self, x: Tensor, e: Tensor) -> list[Tensor]:
        """Return the features after the first convolution and after each block of the encoder."""
        image, features = x, [self.input(x)]
        for name, block in self.encoder.items():
            h = self.run(block, features[-1], e)
            if name in self.image_residuals:
                image = h = (h + self.image_residuals[name](image)) / math.sqrt(2)
            features.append(h)
        return features


def _blurred(x: Tensor) -> Tensor:
    """Apply the filter [1, 2, 1] / 4 to both axes, zero outside; [1, 3, 3, 1] is [1, 2, 1] with [1, 1]."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)
