"""Samples as PNG images: grids of images, dots for points, and the difference of two sets."""

from __future__ import annotations

import io
import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_guide.utils.images import encode_png

__all__ = ["difference", "render_samples"]


_GAP, _SMALLEST_SIDE = 2, 64  # pixels between images, and of the side to which smaller ones are enlarged


def render_samples(x: Tensor) -> bytes:
    """Return a PNG of samples `x` in stored form: images (B, C, H, W) in a grid, or points (B, d) as dots."""
    if x.ndim == 2:
        return _dots(x)
    return encode_png(_grid(_as_pixels(x)))


def difference(x: Tensor, y: Tensor) -> bytes:
    """Return a PNG of |x - y| of two sets of the same seeds, scaled so that the largest is white; points overlaid.

    Raises:
        ValueError: if their shapes differ.
    """
    if x.shape != y.shape:
        raise ValueError(f"samples of shape {tuple(x.shape)} and {tuple(y.shape)} have no difference")
    if x.ndim == 2:
        return _dots(x, y)
    distance = (_as_pixels(x).float() - _as_pixels(y).float()).abs()
    return encode_png(_grid((distance * (255 / distance.max().clamp(min=1))).round().to(torch.uint8)))


def _as_pixels(x: Tensor) -> Tensor:
    """Return images (B, 1 or 3, H, W) uint8: of other data the first channels, scaled from smallest to largest."""
    x = x if x.shape[1] in (1, 3) else x[:, :3] if x.shape[1] > 3 else x[:, :1]
    if x.dtype == torch.uint8:
        return x
    x = x.float().nan_to_num()
    low, high = x.min(), x.max()
    return ((x - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)


def _grid(x: Tensor) -> Tensor:
    """Return images (B, C, H, W), tiny ones enlarged, in a grid (C, height, width) with white between them."""
    factor = math.ceil(_SMALLEST_SIDE / min(x.shape[2:]))
    x = x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    count, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = torch.full(
        (channels, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), 255, dtype=torch.uint8
    )
    for i, image in enumerate(x):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        grid[:, top : top + height, left : left + width] = image
    return grid


def _dots(*sets: Tensor) -> bytes:
    """Return the first two coordinates of each set (B, d) as dots in a color of its own."""
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for x, color in zip(sets, ("#0072B2", "#D55E00"), strict=False):
        second = x[:, 1] if x.shape[1] > 1 else torch.arange(len(x))
        axes.scatter(x[:, 0].float().numpy(), second.float().numpy(), s=16, color=color, linewidths=0)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
