"""A distribution that is exactly known, as figures need it: points, density and the region of 99 %."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from callbacks.density_map import DensityMap, Window

__all__ = ["KnownDistribution", "Truth"]

DRAWS, QUANTILE = 2**16, 0.01


class KnownDistribution(Protocol):
    """A distribution of points that can be sampled and whose density is known at any noise level."""

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` points (count, 2), and something else."""

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln p(x; sigma), (B,), for `x` (B, 2) and `sigma` ()."""


class Truth:
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
                "expected for example lightning_guide.toys.fractal.FractalTree"
            )
        self.distribution, self.smoothing = distribution, smoothing
        self._maps: dict[tuple[Window, int], DensityMap] = {}

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

    def map(self, window: Window, side: int) -> DensityMap:
        """The log-density on `side` x `side` cells of a window."""
        key = (window, side)
        if key not in self._maps:
            self._maps[key] = DensityMap.of(self.log_density, window, side)
        return self._maps[key]
