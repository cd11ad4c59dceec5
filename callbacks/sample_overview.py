"""One image of samples that are no images themselves: points, motions, latents."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.output import image_grid, render, scatter
from lightning_guide.objectives.motion import ground_path
from lightning_guide.utils.terminal import counted

__all__ = ["draw_overview"]

GRID, COLUMNS, PATHS = 64, 8, 100  # of the first samples


def draw_overview(x: Tensor) -> Tensor | None:
    """Draw samples `x` (B, *data_shape): (3, height, width) uint8; None for data of another shape.

    Points (B, d) are dots at their first two coordinates, motions (B, 2 joints, frames) or (B, joints, 3, frames) paths
    on the ground, and the first three channels of latents (B, C, H, W) a grid.
    """
    x = x.float().nan_to_num()
    if x.ndim == 2:
        dots = x if x.shape[1] > 1 else torch.stack([x[:, 0], torch.arange(len(x), dtype=x.dtype)], dim=1)
        low, high = dots[:, :2].amin(0), dots[:, :2].amax(0)
        margin = (0.05 * (high - low)).clamp(min=1e-3)
        return scatter(x, counted(len(x), "sample"), (low - margin, high + margin))
    if (x.ndim == 3 and x.shape[1] % 2 == 0) or (x.ndim == 4 and x.shape[2] == 3):
        figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
        axes = figure.add_subplot(
            title=f"{min(len(x), PATHS)} of {counted(len(x), 'sample')}", aspect="equal", xlabel="meters"
        )
        for path in ground_path(x[:PATHS]).tolist():
            axes.plot(*path, linewidth=0.8, color="#0072B2", alpha=0.7)
        return render(figure)
    return image_grid(x[:GRID], COLUMNS) if x.ndim == 4 else None
