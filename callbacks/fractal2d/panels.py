"""Panels of the 2D figure: samples, trajectories, densities, log ratio and metric curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from callbacks.fractal2d.density import DensityMap, ViewWindow

__all__ = ["curves_panel", "density_panel", "ratio_panel", "samples_panel", "trajectories_panel"]


DENSITY_COLORMAP = "Greys"


def samples_panel(axes: Axes, x: Tensor, truth: DensityMap, level: float, *, color: str) -> None:
    """Draw points `x` (B, 2) on the true density, whose 99 % region is outlined at the log-density `level`."""
    truth.shade(axes, cmap=DENSITY_COLORMAP, alpha=0.35)
    truth.outline(axes, level)
    axes.scatter(
        x[:, 0].numpy(), x[:, 1].numpy(), s=min(8e3 / len(x), 6) + 0.3, linewidths=0, color=color, rasterized=True
    )
    truth.window.frame(axes)


def trajectories_panel(axes: Axes, states: Tensor, truth: DensityMap, level: float, *, color: str) -> None:
    """Draw the trajectories (steps + 1, n, 2) of n samples, with a circle at each start and a dot at each end."""
    truth.shade(axes, cmap=DENSITY_COLORMAP, alpha=0.5)
    truth.outline(axes, level)
    paths = states.transpose(0, 1).numpy()  # (n, steps + 1, 2)
    axes.add_collection(LineCollection(list(paths), colors=color, linewidths=0.9, alpha=0.8))
    axes.scatter(paths[:, 0, 0], paths[:, 0, 1], s=6, facecolors="white", edgecolors=color, linewidths=0.7, zorder=3)
    axes.scatter(paths[:, -1, 0], paths[:, -1, 1], s=9, color=color, linewidths=0, zorder=4)
    truth.window.frame(axes)


def density_panel(
    axes: Axes, learned: DensityMap, truth: DensityMap, level: float, arrows: tuple[Tensor, Tensor]
) -> None:
    """Draw a learned density, the true outline, and the score as arrows (points, vectors), each (n, 2)."""
    learned.shade(axes, cmap="Purples")
    truth.outline(axes, level, color="black", width=0.8)
    _arrows(axes, arrows, learned.window)


def ratio_panel(axes: Axes, ratio: DensityMap, truth: DensityMap, level: float, arrows: tuple[Tensor, Tensor]) -> None:
    """Draw a log ratio of densities, with its guidance vectors as arrows."""
    ratio.contrast(axes, limit=3.0)
    truth.outline(axes, level, color="black", width=0.8)
    _arrows(axes, arrows, ratio.window)


def curves_panel(
    axes: Axes,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    colors: Mapping[str, str],
    truth: float | None = None,
) -> None:
    """Draw (weight, value) pairs of each method, and the value of reference samples as a dotted line."""
    for method, points in curves.items():
        weights, values = [weight for weight, _ in points], [value for _, value in points]
        axes.plot(weights, values, "o-", color=colors[method], label=method, markersize=4, linewidth=1.5)
    if truth is not None:
        axes.axhline(truth, color="0.3", linestyle=":", label="truth")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _arrows(axes: Axes, arrows: tuple[Tensor, Tensor], window: ViewWindow) -> None:
    """Draw arrows whose length is the square root of the vector's norm, so that weak ones remain visible."""
    points, vectors = arrows
    length = vectors.norm(dim=1, keepdim=True)
    shown = vectors / length.clamp(min=1e-12) * (length / length.max().clamp(min=1e-12)).sqrt()
    axes.quiver(
        points[:, 0], points[:, 1], shown[:, 0], shown[:, 1], color="black", alpha=0.7, angles="xy", pivot="mid",
        scale_units="xy", scale=9.0 / window.half_width, width=0.004,
    )  # fmt: skip
    window.frame(axes)
