"""Pictures as a network that others have trained wants to see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

__all__ = ["shown"]


def shown(
    picture: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: Sequence[int] | None = None,
    channels: int | None = None,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Tensor:
    """(resized - mean) / std `(B, channels, *size)` of a `picture` (B, C, H, W) with values in [0, 1], differentiable.

    The whole picture is resized to `size` (height, width), by `mode` and antialiased, not cropped; one channel is
    repeated `channels` times. `mean` and `std` are one number for each channel, or for all.
    """
    if channels is not None:
        picture = picture.expand(-1, channels, -1, -1)
    if size is not None:
        picture = F.interpolate(picture, tuple(size), mode=mode, align_corners=False, antialias=True)
    middle, spread = (picture.new_tensor(each)[:, None, None] for each in (mean, std))
    return (picture - middle) / spread
