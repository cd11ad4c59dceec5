"""Log-densities on a square window of the plane, with the reference density of a known distribution."""

from __future__ import annotations

import copy
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
    """Square window: center and half of the side."""

    center: tuple[float, float]
    half_width: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Limits (left, right, bottom, top)."""
        (x, y), half = self.center, self.half_width
        return x - half, x + half, y - half, y + half

    def grid(self, side: int) -> Tensor:
        """Return the centers of `side` x `side` cells, (side^2, 2), row by row from the bottom."""
        steps = ((torch.arange(side) + 0.5) / side * 2 - 1) * self.half_width
        y, x = torch.meshgrid(steps + self.center[1], steps + self.center[0], indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)

    def contains(self, x: Tensor) -> Tensor:
        """Return which of the points `x` (B, 2) lie inside, bool (B,)."""
        return ((x - torch.tensor(self.center).to(x)).abs() < self.half_width).all(dim=1)

    def frame(self, axes: Axes) -> None:
        """Set the limits of `axes` to this window, without ticks."""
        left, right, bottom, top = self.extent
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])


@dataclass(frozen=True)
class DensityMap:
    """Log-density ln p on the cells of a window: `values` (side, side), row 0 at the bottom."""

    window: ViewWindow
    values: Tensor

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor], window: ViewWindow, side: int) -> DensityMap:
        """Evaluate `log_density`, (B, 2) -> (B,), on `side` x `side` cells."""
        return cls(window, log_density(window.grid(side)).float().cpu().reshape(side, side))

    def normalized(self) -> DensityMap:
        """Return the log-density conditioned on the window: its integral over the window is 1."""
        side = len(self.values)
        cell = 2 * math.log(2 * self.window.half_width / side)
        return DensityMap(self.window, self.values - self.values.logsumexp(dim=(0, 1)) - cell)

    def divergence(self, other: DensityMap) -> float:
        """Return KL(self || other) in nats; both are normalized, on the same cells."""
        return float((self.values.flatten().softmax(0).reshape_as(self.values) * (self.values - other.values)).sum())

    def shade(self, axes: Axes, *, cmap: str, alpha: float = 1.0) -> None:
        """Draw -sqrt(max - ln p), which shows both tails and peaks, down to 16 below the maximum."""
        depth = (self.values.max() - self.values).clamp(max=16.0).sqrt()
        self._show(axes, -depth, cmap=cmap, alpha=alpha, vmin=-4.0, vmax=0.0)

    def contrast(self, axes: Axes, limit: float) -> None:
        """Draw the values in colors from -`limit` (brown) over 0 (white) to `limit` (green)."""
        self._show(axes, self.values, cmap="BrBG", vmin=-limit, vmax=limit)

    def outline(self, axes: Axes, level: float, *, color: str = "0.35", width: float = 0.6) -> None:
        """Draw the contour ln p = `level`."""
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
    """Protocol of a distribution of points with samples and an exact density at any noise level."""

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `count` points (count, 2), and a second value that is ignored."""

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return ln p(x; sigma), (B,), for `x` (B, 2) and `sigma` ()."""


class ReferenceDensity:
    """Reference density for figures: `distribution` smoothed by noise of level `smoothing`; results are cached."""

    def __init__(self, distribution: KnownDistribution, smoothing: float) -> None:
        """Configure the distribution and the noise level `smoothing`.

        Raises:
            ValueError: if `distribution` lacks `sample` or `log_density`.
        """
        missing = [name for name in ("sample", "log_density") if not callable(getattr(distribution, name, None))]
        if missing:
            raise ValueError(
                f"the distribution of a figure is a {type(distribution).__name__} without {' and '.join(missing)}; "
                "expected for example lightning_guide.distributions.fractal.FractalTree"
            )
        self.distribution = copy.deepcopy(distribution)  # stays on the CPU if a metric moves the same object
        self.smoothing = smoothing
        self._maps: dict[tuple[ViewWindow, int], DensityMap] = {}

    def sample(self, count: int, *, seed: int = 0, sigma: float = 0.0) -> Tensor:
        """Return `count` points (count, 2) from p(x; sigma), without the smoothing."""
        generator = torch.Generator().manual_seed(seed)
        x, _ = self.distribution.sample(count, generator)
        return x + sigma * torch.randn(x.shape, generator=generator)

    def log_density(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Return ln p(x; sigma), (B,), by default at sigma = `smoothing`."""
        return self.distribution.log_density(x, torch.tensor(self.smoothing if sigma is None else sigma))

    @cached_property
    def level(self) -> float:
        """Log-density above which 99 % of reference samples lie."""
        return float(self.log_density(self.sample(DRAWS, seed=1)).quantile(QUANTILE))

    def outside(self, x: Tensor) -> float:
        """Return the share of points `x` (B, 2) outside the 99 % region; NaN counts as outside."""
        return float((~(self.log_density(x) >= self.level)).float().mean())

    def map(self, window: ViewWindow, side: int) -> DensityMap:
        """Return the log-density on `side` x `side` cells of a window (cached)."""
        key = (window, side)
        if key not in self._maps:
            self._maps[key] = DensityMap.of(self.log_density, window, side)
        return self._maps[key]
