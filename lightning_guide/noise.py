"""Noise levels: training distributions and sampling grids.

Karras et al. 2022 (EDM), https://arxiv.org/abs/2206.00364: table 1 (training distribution) and equation 5 (grid).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_guide.utils.recipe import HasRecipe
from lightning_guide.utils.scalars import check_whole

__all__ = [
    "CustomGrid",
    "FlowGrid",
    "Grid",
    "InterpolatedGrid",
    "KarrasGrid",
    "LogNormal",
    "LogUniform",
    "LogUniformGrid",
    "NoiseDistribution",
    "UniformTime",
]


class NoiseDistribution(ABC):
    """Distribution of the noise level sigma in training."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` noise levels, float32 `(count,)`, on the generator's device."""


class LogNormal(NoiseDistribution):
    """Log-normal noise levels: ln sigma ~ N(mean, std^2). EDM: (-1.2, 1.2); EDM2 latents: (-0.4, 1.0).

    In the time t = sigma / (1 + sigma) of rectified flow this is the logit-normal distribution (SD3: mean 0, std 1).
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        """Set `mean` and `std` of ln sigma.

        Raises:
            ValueError: unless `std` is positive.
        """
        if not std > 0:
            raise ValueError(f"LogNormal needs std > 0, got {std}")
        self.mean, self.std = mean, std

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw exp(mean + std z), z standard normal."""
        z = torch.randn(count, generator=generator, device=generator.device)
        return (self.mean + self.std * z).exp()


class LogUniform(NoiseDistribution):
    """Log-uniform noise levels: ln sigma uniform between ln `low` and ln `high`."""

    def __init__(self, low: float = 0.002, high: float = 80.0) -> None:
        """Set the noise levels `low` and `high`.

        Raises:
            ValueError: unless 0 < low < high.
        """
        if not 0 < low < high:
            raise ValueError(f"LogUniform needs 0 < low < high, got low={low}, high={high}")
        self.low, self.high = low, high

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw low (high / low)^u, u uniform on [0, 1)."""
        u = torch.rand(count, generator=generator, device=generator.device)
        return self.low * (self.high / self.low) ** u


class UniformTime(NoiseDistribution):
    """Uniform times t = sigma / (1 + sigma) of rectified flow: sigma = shift t / (1 - t), t uniform on (0, 1)."""

    def __init__(self, shift: float = 1.0) -> None:
        """Set the factor `shift` of the levels.

        Raises:
            ValueError: unless `shift` is positive.
        """
        if not shift > 0:
            raise ValueError(f"UniformTime needs shift > 0, got {shift}")
        self.shift = shift

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw shift t / (1 - t), t at the middle of one of 2^20 equal parts of (0, 1)."""
        part = torch.randint(2**20, (count,), generator=generator, device=generator.device)
        t = (part + 0.5) / 2**20
        return self.shift * t / (1 - t)


class Grid(HasRecipe, ABC):
    """Base of grids: noise levels sigma_0 > ... > sigma_{N-1} > sigma_N = 0 of a sampler with N steps."""

    @abstractmethod
    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""


class KarrasGrid(Grid):
    """EDM grid: sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho, then 0 (EDM, equation 5).

    Examples:
        >>> [round(sigma, 3) for sigma in KarrasGrid(5).sigmas().tolist()]
        [80.0, 17.528, 2.515, 0.17, 0.002, 0.0]
    """

    def __init__(
        self, num_steps: int = 32, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        """Set `num_steps` N >= 1 and the levels from `sigma_max` to `sigma_min`; larger `rho`: shorter steps near 0.

        Raises:
            ValueError: if the levels do not descend, or `rho` is not positive.
        """
        _check_range(num_steps, sigma_min, sigma_max)
        if not rho > 0:
            raise ValueError(f"KarrasGrid needs rho > 0, got {rho}")
        self.num_steps, self.sigma_min, self.sigma_max, self.rho = num_steps, sigma_min, sigma_max, rho

    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        inner = torch.linspace(high, low, self.num_steps, dtype=torch.float64) ** self.rho
        return torch.cat([inner, inner.new_zeros(1)])


class LogUniformGrid(Grid):
    """Log-uniform grid: sigma_i = max (min / max)^(i / (N - 1)), then 0; equal steps in log-SNR.

    Examples:
        >>> [round(sigma, 3) for sigma in LogUniformGrid(4, sigma_min=0.01, sigma_max=10.0).sigmas().tolist()]
        [10.0, 1.0, 0.1, 0.01, 0.0]
    """

    def __init__(self, num_steps: int = 32, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        """Set `num_steps` N >= 1 and the levels from `sigma_max` to `sigma_min`.

        Raises:
            ValueError: if the levels do not descend.
        """
        _check_range(num_steps, sigma_min, sigma_max)
        self.num_steps, self.sigma_min, self.sigma_max = num_steps, sigma_min, sigma_max

    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""
        i = torch.linspace(0, 1, self.num_steps, dtype=torch.float64)
        inner = self.sigma_max * (self.sigma_min / self.sigma_max) ** i
        return torch.cat([inner, inner.new_zeros(1)])


class FlowGrid(Grid):
    """Grid of rectified flow: equal steps of t from 1 to `last`, sigma = shift t / (1 - t), then 0.

    At t = 1 sigma is infinite; the first level is `sigma_max` instead. A shift a maps t to a t / (1 + (a - 1) t).

    Examples:
        >>> FlowGrid(4, shift=3.0).sigmas().tolist()
        [1000000.0, 9.0, 3.0, 1.0, 0.0]
    """

    def __init__(
        self, num_steps: int = 28, *, shift: float = 1.0, last: float | None = None, sigma_max: float = 1e6
    ) -> None:
        """Set `num_steps` N >= 1, the `shift` a, and `last`, the t of level N - 1 before the shift; default 1 / N.

        Raises:
            ValueError: if the levels do not descend.
        """
        check_whole(num_steps, "num_steps", least=1)
        last = 1 / num_steps if last is None else last
        if not shift > 0 or not 0 < last <= 1 or (last == 1 and num_steps > 1) or not sigma_max < math.inf:
            raise ValueError(
                f"FlowGrid needs shift > 0, 0 < last < 1 and a finite sigma_max, got {shift}, {last} and {sigma_max}"
            )
        self.num_steps, self.shift, self.last, self.sigma_max = num_steps, shift, last, sigma_max
        if not bool((self.sigmas().diff() < 0).all()):
            raise ValueError(f"sigma_max={sigma_max:g} of FlowGrid is below its next level {self.sigmas()[1]:g}")

    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""
        t = torch.linspace(1, self.last, self.num_steps, dtype=torch.float64)[1:]
        first, end = t.new_tensor([self.sigma_max]), t.new_zeros(1)
        return torch.cat([first, self.shift * t / (1 - t), end])


class CustomGrid(Grid):
    """Grid of given levels, then 0.

    Examples:
        >>> CustomGrid([14.6, 2.0, 0.5]).sigmas().tolist()
        [14.6, 2.0, 0.5, 0.0]
    """

    def __init__(self, levels: Sequence[float]) -> None:
        """Set the `levels` sigma_0 > ... > sigma_{N-1} > 0.

        Raises:
            ValueError: if there is none, or they do not descend to above 0.
        """
        self.levels = [float(level) for level in levels]
        ends = [*self.levels, 0.0]
        if not self.levels or not all(high > low for high, low in pairwise(ends)) or not ends[0] < math.inf:
            name = type(self).__name__
            raise ValueError(f"{name} needs finite levels that descend to above 0, got {self.levels}")
        self.num_steps = len(self.levels)

    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""
        return torch.tensor([*self.levels, 0.0], dtype=torch.float64)


class InterpolatedGrid(CustomGrid):
    """Grid through given levels: ln sigma is linear between them, at N equally spaced places, then 0.

    A schedule optimized for few steps is used with more in this way (Sabour et al. 2024, Align Your Steps,
    https://arxiv.org/abs/2404.14507); `lightning-guide tune` finds the levels (configs/search/steps.yaml).

    Examples:
        >>> [round(sigma, 3) for sigma in InterpolatedGrid([10.0, 0.1, 0.01], num_steps=5).sigmas().tolist()]
        [10.0, 1.0, 0.1, 0.032, 0.01, 0.0]
    """

    def __init__(self, levels: Sequence[float], *, num_steps: int = 10) -> None:
        """Set the first, the last and the inner `levels`, at least two, and the `num_steps` N >= 2.

        Raises:
            ValueError: if there are fewer, or the levels do not descend to above 0.
        """
        super().__init__(levels)
        check_whole(num_steps, "num_steps", least=1)
        if len(self.levels) < 2 or num_steps < 2:
            raise ValueError(f"InterpolatedGrid needs two levels and two steps, got {self.levels} and {num_steps}")
        self.num_steps = num_steps

    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""
        logs = torch.tensor(self.levels, dtype=torch.float64).log()
        places = torch.linspace(0, len(logs) - 1, self.num_steps, dtype=torch.float64)
        left = places.long().clamp(max=len(logs) - 2)
        inner = torch.lerp(logs[left], logs[left + 1], places - left).exp()
        return torch.cat([inner, inner.new_zeros(1)])


def _check_range(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    """Refuse a grid that does not descend."""
    check_whole(num_steps, "num_steps", least=1)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"a grid needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
