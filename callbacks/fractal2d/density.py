"""Log-densities on a square window of the plane, and how they are drawn.

A distribution that is exactly known, as figures need it: points, density and the region of 99 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from matplotlib.axes import Axes
from torch import Tensor

__all__ = ["DensityMap", "KnownDistribution", "ReferenceDensity", "ViewWindow"]


@dataclass(frozen=True)
class ViewWindow:
    """A square: center and half of the side."""

    center: tuple[float, float]
    half_width: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top)."""
        (x, y), half = self.center, self.half_width
        return x - half, x + half, y - half, y + half

    def grid(self, side: int) -> Tensor:
        """Centers of `side` x `side` cells, (side^2, 2), row by row from the bottom."""
        steps = ((torch.arange(side) + 0.5) / side * 2 - 1) * self.half_width
        y, x = torch.meshgrid(steps + self.center[1], steps + self.center[0], indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)

    def contains(self, x: Tensor) -> Tensor:
        """Which of the points `x` (B, 2) lie inside, bool (B,)."""
        return ((x - torch.tensor(self.center).to(x)).abs() < self.half_width).all(dim=1)

    def frame(self, axes: Axes) -> None:
        """Shows this window, without ticks."""
        left, right, bottom, top = self.extent
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])


@dataclass(frozen=True)
class DensityMap:
    """ln p on the cells of a window: `values` (side, side), row 0 at the bottom."""

    window: ViewWindow
    values: Tensor

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor], window: ViewWindow, side: int) -> DensityMap:
        """Evaluates `log_density`, (B, 2) -> (B,), on `side` x `side` cells."""
        return cls(window, log_density(window.grid(side)).float().cpu().reshape(side, side))

    def normalized(self) -> DensityMap:
        """The log-density given that the point lies in the window: the integral over the window is 1."""
        side = len(self.values)
        cell = 2 * math.log(2 * self.window.half_width / side)
        return DensityMap(self.window, self.values - self.values.logsumexp(dim=(0, 1)) - cell)

    def divergence(self, other: DensityMap) -> float:
        """The Kullback-Leibler divergence of `other` from this, both normalized, on the same cells: nats."""
        return float((self.values.flatten().softmax(0).reshape_as(self.values) * (self.values - other.values)).sum())

    def shade(self, axes: Axes, *, cmap: str, alpha: float = 1.0) -> None:
        """Colors -sqrt(max - ln p), which shows tails and peaks at once, down to 16 below the maximum."""
        depth = (self.values.max() - self.values).clamp(max=16.0).sqrt()
        self._show(axes, -depth, cmap=cmap, alpha=alpha, vmin=-4.0, vmax=0.0)

    def contrast(self, axes: Axes, limit: float) -> None:
        """Colors the values from -`limit` (brown) over 0 (white) to `limit` (green)."""
        self._show(axes, self.values, cmap="BrBG", vmin=-limit, vmax=limit)

    def outline(self, axes: Axes, level: float, *, color: str = "0.35", width: float = 0.6) -> None:
        """The line where ln p is `level`."""
        side = len(self.values)
        steps = ((torch.arange(side) + 0.5) / side * 2 - 1) * self.window.half_width
        x, y = (steps + c for c in self.window.center)
        line: dict[str, Any] = {"colors": color, "linewidths": width, "linestyles": "solid"}
        axes.contour(x.numpy(), y.numpy(), self.values.numpy(), levels=[level], **line)

    def _show(self, axes: Axes, values: Tensor, **options: Any) -> None:
        axes.imshow(
            values.numpy(),
            extent=self.window.extent,
            origin="lower",
            interpolation="bilinear",
            **options,
        )


DRAWS, QUANTILE = 2**16, 0.01


class KnownDistribution(Protocol):
    """A distribution of points that can be sampled and whose density is known at any noise level."""

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` points (count, 2), and something else."""

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln p(x; sigma), (B,), for `x` (B, 2) and `sigma` ()."""


class ReferenceDensity:
    """`distribution` smoothed by noise of the level `smoothing`; what is costly is worked out once."""

    def __init__(self, distribution: KnownDistribution, smoothing: float) -> None:
        """See the class.

        Raises:
            ValueError: if the density of `distribution` is not known.
        """
        missing = [name for name in ("sample", "log_density") if not callable(getattr(distribution, name, None))]
        if missing:
            raise ValueError(
                f"the distribution of a figure is a {type(distribution).__name__} without {' and '.join(missing)}; "
                "expected for example lightning_guide.distributions.fractal.FractalTree"
            )
        self.distribution, self.smoothing = distribution, smoothing
        self._maps: dict[tuple[ViewWindow, int], DensityMap] = {}

    def sample(self, count: int, *, seed: int = 0, sigma: float = 0.0) -> Tensor:
        """`count` points (count, 2) of p(x; sigma), without the smoothing."""
        generator = torch.Generator().manual_seed(seed)
        x, _ = self.distribution.sample(count, generator)
        return x + sigma * torch.randn(x.shape, generator=generator)

    def log_density(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """ln p(x; sigma), (B,), by default at the smoothing."""
        return self.distribution.log_density(x, torch.tensor(self.smoothing if sigma is None else sigma))

    @cached_property
    def level(self) -> float:
        """The log-density above which 99 % of true points lie."""
        return float(self.log_density(self.sample(DRAWS, seed=1)).quantile(QUANTILE))

    def outside(self, x: Tensor) -> float:
        """Share of the points `x` (B, 2) that lie outside of the region of 99 %; NaN counts as outside."""
        return float((~(self.log_density(x) >= self.level)).float().mean())

    def map(self, window: ViewWindow, side: int) -> DensityMap:
        """The log-density on `side` x `side` cells of a window."""
        key = (window, side)
        if key not in self._maps:
            self._maps[key] = DensityMap.of(self.log_density, window, side)
        return self._maps[key]
