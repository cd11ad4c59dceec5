"""Windows over a picture: n x n overlapping crops, and the average of what is said about each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Window", "coverage", "overlap_average", "windows"]

Window = tuple[slice, slice]
"""(rows, columns)."""


def windows(height: int, width: int, *, fraction: float, count: int) -> list[Window]:
    """`count` x `count` windows over a picture, each of `fraction` of its sides.

    A window has k = round(fraction height) rows; the i-th begins at row round(i (height - k) / (count - 1)). The same
    holds for columns. Windows that coincide are listed once.

    Raises:
        ValueError: if they leave gaps.
    """
    axes = []
    for side in (height, width):
        k = round(fraction * side)
        if k * count < side:
            raise ValueError(
                f"{count} windows of {k} pixels leave gaps on a side of {side}; "
                f"expected windows of {-(-side // count)} pixels or more"
            )
        starts = sorted({round(i * (side - k) / (count - 1)) for i in range(count)})
        axes.append([slice(start, start + k) for start in starts])
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def coverage(places: Sequence[Window], like: Tensor) -> Tensor:
    """How many windows hold each pixel, `(1, 1, H, W)`, for pictures `like` (B, C, H, W)."""
    count = like.new_zeros(1, 1, *like.shape[2:])
    for rows, columns in places:
        count[..., rows, columns] += 1
    return count


def overlap_average(parts: Sequence[Tensor], places: Sequence[Window], like: Tensor) -> Tensor:
    """`(B, C, H, W)`, shaped `like` this picture, from its windows `parts` (B, C, k, k'), averaged on overlaps."""
    total = torch.zeros_like(like, dtype=parts[0].dtype)
    for part, (rows, columns) in zip(parts, places, strict=True):
        total[..., rows, columns] += part
    return total / coverage(places, total)
