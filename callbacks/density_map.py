"""Log-densities on a square window of the plane, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

__all__ = ["DensityMap", "Window"]


@dataclass(frozen=True)
class Window:
    """A square: centre and half of the side."""

    centre: tuple[float, float]
    half_width: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top)."""
        (x, y), half = self.centre, self.half_width
        return x - half, x + half, y - half, y + half

    def grid(self, side: int) -> Tensor:
        """Centres of `side` x `side` cells, (side^2, 2), row by row from the bottom."""
        steps = ((torch.arange(side) + 0.5) / side * 2 - 1) * self.half_width
        y, x = torch.meshgrid(steps + self.centre[1], steps + self.centre[0], indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)

    def contains(self, x: Tensor) -> Tensor:
        """Which of the points `x` (B, 2) lie inside, bool (B,)."""
        return ((x - torch.tensor(self.centre).to(x)).abs() < self.half_width).all(dim=1)

    def frame(self, axes: Axes) -> None:
        """Shows this window, without ticks."""
        left, right, bottom, top = self.extent
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])


@dataclass(frozen=True)
class DensityMap:
    """ln p on the cells of a window: `values` (side, side), row 0 at the bottom."""

    window: Window
    values: Tensor

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor], window: Window, side: int) -> DensityMap:
        """Evaluates `log_density`, (B, 2) -> (B,), on `side` x `side` cells."""
        return cls(window, log_density(window.grid(side)).float().cpu().reshape(side, side))

    def normalised(self) -> DensityMap:
        """The log-density given that the point lies in the window: the integral over the window is 1."""
        side = len(self.values)
        cell = 2 * math.log(2 * self.window.half_width / side)
        return DensityMap(self.window, self.values - self.values.logsumexp(dim=(0, 1)) - cell)

    def divergence(self, other: DensityMap) -> float:
        """The Kullback-Leibler divergence of `other` from this, both normalised, on the same cells: nats."""
        return float((self.values.flatten().softmax(0).reshape_as(self.values) * (self.values - other.values)).sum())

    def shade(self, axes: Axes, *, cmap: str, alpha: float = 1.0) -> None:
        """Colours -sqrt(max - ln p), which shows tails and peaks at once, down to 16 below the maximum."""
        depth = (self.values.max() - self.values).clamp(max=16.0).sqrt()
        self._show(axes, -depth, cmap=cmap, alpha=alpha, vmin=-4.0, vmax=0.0)

    def contrast(self, axes: Axes, limit: float) -> None:
        """Colours the values from -`limit` (brown) over 0 (white) to `limit` (green)."""
        self._show(axes, self.values, cmap="BrBG", vmin=-limit, vmax=limit)

    def outline(self, axes: Axes, level: float, *, colour: str = "0.35", width: float = 0.6) -> None:
        """The line where ln p is `level`."""
        side = len(self.values)
        steps = ((torch.arange(side) + 0.5) / side * 2 - 1) * self.window.half_width
        x, y = (steps + c for c in self.window.centre)
        line: dict[str, Any] = {"colors": colour, "linewidths": width, "linestyles": "solid"}
        axes.contour(x.numpy(), y.numpy(), self.values.numpy(), levels=[level], **line)

    def _show(self, axes: Axes, values: Tensor, **options: Any) -> None:
        axes.imshow(
            values.numpy(),
            extent=self.window.extent,
            origin="lower",
            interpolation="bilinear",
            **options,
        )
