"""A small classifier of noisy pictures that knows the noise level: the guide of classifier guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import expand
from lightning_guide.networks.classifier import Classifier

__all__ = ["NoisyClassifier"]

_GROUPS = 8
_FREQUENCIES = 16


class NoisyClassifier(Classifier):
    """Logits of p(y | x, sigma) for x = x_0 + sigma n, as for classifier guidance.

    Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, section 4. The input is scaled by
    1 / sqrt(sigma^2 + sigma_data^2); cosines and sines of ln(sigma) / 4 give each block a scale and a shift of its
    normalised channels.
    """

    frequencies: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 64),
        num_features: int = 64,
        sigma_data: float = 0.5,
    ) -> None:
        """As `SmallClassifier`; `sigma_data` is the standard deviation of the data.

        Raises:
            ValueError: as `SmallClassifier`.
        """
        super().__init__()
        if len(data_shape) != 3 or num_classes < 2 or not widths or any(width % _GROUPS for width in widths):
            raise ValueError(
                f"NoisyClassifier needs data_shape (C, H, W), num_classes >= 2 and widths in multiples of {_GROUPS}, "
                f"got {tuple(data_shape)}, {num_classes} and {list(widths)}"
            )
        self.data_shape, self.num_classes, self.sigma_data = tuple(data_shape), num_classes, sigma_data
        sizes = [data_shape[0], *widths]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, widths, strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for width in widths)
        self.modulations = nn.ModuleList(nn.Linear(2 * _FREQUENCIES, 2 * width) for width in widths)
        self.hidden = nn.Linear(widths[-1], num_features)
        self.head = nn.Linear(num_features, num_classes)
        self.register_buffer("frequencies", math.pi * 2 ** torch.linspace(-2, 3, _FREQUENCIES))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Class logits (B, K) of `x` (B, C, H, W) at noise level `sigma` (B,) or ().

        Raises:
            ValueError: if the pictures have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"pictures have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        phase = (sigma.log() / 4).expand(len(x))[:, None] * self.frequencies
        level = torch.cat([phase.cos(), phase.sin()], 1)
        h = x * (expand(sigma, x) ** 2 + self.sigma_data**2).rsqrt()
        for i, (convolution, norm, modulation) in enumerate(
            zip(self.convolutions, self.norms, self.modulations, strict=True)
        ):
            h = nn.functional.max_pool2d(h, 2) if i else h
            scale, shift = modulation(level)[..., None, None].chunk(2, 1)
            h = nn.functional.silu(norm(convolution(h)) * (1 + scale) + shift)
        logits: Tensor = self.head(nn.functional.silu(self.hidden(h.mean((2, 3)))))
        return logits
