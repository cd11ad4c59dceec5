"""Pictures of samples: images side by side, points as dots."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from callbacks.png import render
from lightning_guide.data import DataView

__all__ = ["limits_of", "picture_grid", "scatter"]

SMALLEST_SIDE = 64  # pixels; smaller pictures are enlarged by a whole number


def picture_grid(x: Tensor, columns: int) -> Tensor:
    """Pictures `x` (B, C, H, W) side by side, (3, height, width) uint8, enlarged if they are tiny.

    Of data that is no picture, such as latents, the first three channels are shown, from the smallest to the largest
    value.
    """
    if x.shape[1] not in (1, 3):
        x = x[:, :3] if x.shape[1] > 3 else x[:, :1]
    if x.dtype != torch.uint8:
        x = x.float().nan_to_num()
        low, high = x.min(), x.max()
        x = ((x - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    factor = math.ceil(SMALLEST_SIDE / min(x.shape[2:]))
    x = x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(x, nrow=columns, pad_value=255)


def _coordinates(x: Tensor) -> Tensor:
    """The first two coordinates (B, 2) of points (B, d); a single one is drawn against the sample's number."""
    return x[:, :2].float() if x.shape[1] > 1 else torch.stack([x[:, 0].float(), torch.arange(len(x)).float()], dim=1)


def limits_of(real: DataView) -> tuple[Tensor, Tensor]:
    """Lowest and highest values (2,) on the axes: those of the first batch of real points, and some margin."""
    dots = _coordinates(next(iter(real.reference(torch.device("cpu")))).x)
    low, high = dots.amin(dim=0), dots.amax(dim=0)
    margin = (0.15 * (high - low)).clamp(min=1e-3)
    return low - margin, high + margin


def scatter(x: Tensor, title: str, limits: tuple[Tensor, Tensor]) -> Tensor:
    """Points (B, d) as dots, (3, 600, 600) uint8; the title says how many lie outside."""
    (left, bottom), (right, top) = (limit.tolist() for limit in limits)
    dots = _coordinates(x)
    outside = int((~((dots > limits[0]) & (dots < limits[1])).all(dim=1)).sum())
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=f"{title}, {outside} of {len(x)} points outside")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal" if x.shape[1] > 1 else "auto")
    size = min(20.0, max(0.5, 4e4 / len(dots) ** 1.2))
    axes.scatter(dots[:, 0].numpy(), dots[:, 1].numpy(), s=size, linewidths=0, color="#0072B2")
    return render(figure)
