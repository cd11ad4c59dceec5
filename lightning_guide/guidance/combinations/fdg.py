"""Frequency-decoupled guidance (FDG): a separate weight for each band of a Laplacian pyramid.

Sadat et al. 2025, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales",
https://arxiv.org/abs/2506.19713. The pyramid is linear, so the band k of the guided estimate is
D_pos,k + (w_k - 1) (D_pos,k - D_neg,k), here with w_k - 1 = f_k (w - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import Pair, PairCombination
from lightning_guide.utils.devices import to_device

__all__ = ["FrequencyDecoupled", "reweighted_bands"]


class FrequencyDecoupled(PairCombination):
    """FDG: D_pos + (w - 1) sum_k f_k band_k(D_pos - D_neg), for images (C, H, W). Plain where all factors are 1.

    A band with the factor 0 is that of the positive. The paper's weights w_k (5 for low and 10 for high
    frequencies on SDXL) are w = w_high and the factors [(w_low - 1) / (w_high - 1), 1].
    """

    def __init__(self, factors: Sequence[float] = (0.5, 1.0)) -> None:
        """`factors` f_k of w - 1 from the lowest band to the highest; K factors split into K bands.

        Raises:
            ValueError: if there is no factor or one is not finite.
        """
        if isinstance(factors, str) or not factors or not all(math.isfinite(factor) for factor in factors):
            raise ValueError(f"FrequencyDecoupled needs a list of finite factors, lowest band first, got {factors!r}")
        self.factors = list(factors)

    def is_off(self, weights: Sequence[float], trajectory: Trajectory) -> bool:
        """Return whether all weights are 1, or all factors 0."""
        return super().is_off(weights, trajectory) or not any(self.factors)

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return (w - 1) times the reweighted difference; data that are not images, or too small, are refused."""
        least, shape = 2 ** (len(self.factors) - 1) + 1, tuple(pair.x.shape[1:])
        if len(self.factors) > 1 and (len(shape) != 3 or min(shape[1:]) < least):
            raise ValueError(
                f"FrequencyDecoupled with {len(self.factors)} bands needs images (C, H, W) with sides of {least} "
                f"or more, got data of shape {shape}"
            )
        return (pair.weight - 1) * reweighted_bands(pair.difference, self.factors)


def reweighted_bands(image: Tensor, factors: Sequence[float]) -> Tensor:
    """Return sum_k f_k band_k of `image` (B, C, H, W); `factors` from the lowest band to the highest.

    The highest band is the image minus the expanded reduced image, and the reduced image is split further. Reduce: blur
    with the 5 x 5 binomial kernel, halve (rounded up) bilinearly; expand: enlarge bilinearly to the size before, blur.
    """
    *lower, highest = factors
    if not lower:
        return highest * image
    reduced = F.interpolate(_blur(image), size=[-(-side // 2) for side in image.shape[-2:]], mode="bilinear")
    rest = reweighted_bands(reduced, lower) - highest * reduced
    return highest * image + _blur(F.interpolate(rest, size=image.shape[-2:], mode="bilinear"))


def _blur(image: Tensor) -> Tensor:
    """Apply the binomial blur (1, 4, 6, 4, 1) / 16 along both axes, mirrored at the borders."""
    taps = to_device(torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=image.dtype) / 16, image.device)
    channels = image.shape[1]
    padded = F.pad(image, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(padded, taps.reshape(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(rows, taps.reshape(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
