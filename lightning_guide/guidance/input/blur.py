"""Gaussian blur of pictures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gaussian_blur"]


def gaussian_blur(
    x: Tensor, *, sigma: float, radius: int, border: Literal["reflect", "replicate"] = "reflect"
) -> Tensor:
    """`x` (B, C, H, W) convolved with exp(-i^2 / 2 sigma^2), |i| <= radius, normalised, along both axes.

    `sigma` and `radius` are in pixels; along a side of n pixels the radius is n - 1 at most. Beyond the `border` the
    picture is reflected without repeating the outermost pixel, or that pixel is replicated.
    """
    C = x.shape[1]
    for axis in (2, 3):
        reach = min(radius, x.shape[axis] - 1)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
        taps = (taps / taps.sum()).to(x)
        shape, padding = ((-1, 1), (0, 0, reach, reach)) if axis == 2 else ((1, -1), (reach, reach, 0, 0))
        x = F.conv2d(F.pad(x, padding, mode=border), taps.reshape(1, 1, *shape).expand(C, -1, -1, -1), groups=C)
    return x
