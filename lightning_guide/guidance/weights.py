"""Guidance weights as functions of the noise level: rising with time, with the signal-to-noise ratio, or a table.

Wang et al. 2024, "Analysis of Classifier-Free Guidance Weight Schedulers", https://arxiv.org/abs/2404.13040, compare
weights over the time t of a model's noise schedule and recommend rising ones; the paper was not read. With
p = 1 - t / T, and in the convention in which w = 1 is off,

    linear             1 + 2 (w - 1) p                         PowerWeight(1 + 2 (w - 1), schedule=...)
    cosine             1 + (w - 1) (1 - cos(pi p))             CosineWeight(1 + 2 (w - 1), schedule=...)
    powered cosine     1 + (w - 1) (1 - cos(pi p^power)) / 2   CosineWeight(w, power=..., schedule=...)

The first two have the mean w over all timesteps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence

import torch

from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.noise_schedule import NoiseSchedule

__all__ = ["CosineWeight", "PowerWeight", "SNRWeight", "TableWeight"]


class _Rising(WeightSchedule):
    """Base of weights 1 + (weight - 1) f(p^power) that rise from 1 at p = 0 to `weight` at p = 1."""

    def __init__(
        self, weight: float, *, sigma_max: float = 80.0, power: float = 1.0, schedule: NoiseSchedule | None = None
    ) -> None:
        """`weight` reached at the lowest level; the rise begins at `sigma_max`, linear in sigma.

        With a `schedule`, that of Stable Diffusion for example, p is linear in its timesteps and begins at its last
        one: p = 1 - t / T.

        Raises:
            ValueError: unless the weight is finite and the others are positive.
        """
        if not (math.isfinite(weight) and sigma_max > 0 and power > 0):
            expected = f"{type(self).__name__} needs a finite weight, sigma_max > 0 and power > 0"
            raise ValueError(f"{expected}, got {weight}, {sigma_max} and {power}")
        self.weight, self.sigma_max, self.power, self.schedule = weight, sigma_max, power, schedule
        self.bounds = min(weight, 1.0), max(weight, 1.0)

    def at(self, sigma: float) -> float:
        """Return the weight at `sigma`."""
        if self.schedule is None:
            p = 1 - sigma / self.sigma_max
        else:
            p = 1 - float(self.schedule.timestep(torch.tensor(sigma))) / (self.schedule.num_timesteps - 1)
        return 1 + (self.weight - 1) * self.shape(min(max(p, 0.0), 1.0) ** self.power)

    @abstractmethod
    def shape(self, p: float) -> float:
        """Return f, with f(0) = 0 and f(1) = 1."""


class PowerWeight(_Rising):
    """Power-law schedule 1 + (weight - 1) p^power, p = 1 - sigma / sigma_max or 1 - t / T; linear at power 1.

    Examples:
        >>> [PowerWeight(3.0, sigma_max=10.0).at(sigma) for sigma in (10.0, 5.0, 0.0)]
        [1.0, 2.0, 3.0]
    """

    def shape(self, p: float) -> float:
        """Return p."""
        return p


class CosineWeight(_Rising):
    """Cosine schedule 1 + (weight - 1) (1 - cos(pi p^power)) / 2, p = 1 - sigma / sigma_max or 1 - t / T."""

    def shape(self, p: float) -> float:
        """Return (1 - cos(pi p)) / 2."""
        return (1 - math.cos(math.pi * p)) / 2


class SNRWeight(WeightSchedule):
    """Weight by signal-to-noise ratio: 1 + (weight - 1) snr^power / (snr^power + middle^power), snr = 1 / sigma^2.

    Halfway at snr = `middle`. With middle 1, power 1 is linear in abar = 1 / (1 + sigma^2) of a variance-preserving
    model, and power 1/2 in 1 - t = 1 / (1 + sigma) of a rectified flow; a large power is a threshold. An own choice.
    """

    def __init__(self, weight: float, *, middle: float = 1.0, power: float = 1.0) -> None:
        """`weight` reached at sigma = 0; `middle` is a ratio of variances, `power` the steepness.

        Raises:
            ValueError: unless the weight is finite and the others are positive.
        """
        if not (math.isfinite(weight) and 0 < middle < math.inf and 0 < power < math.inf):
            expected = "SNRWeight needs a finite weight, middle > 0 and power > 0"
            raise ValueError(f"{expected}, got {weight}, {middle} and {power}")
        self.weight, self.middle, self.power = weight, middle, power
        self.bounds = min(weight, 1.0), max(weight, 1.0)

    def at(self, sigma: float) -> float:
        """Return the weight at `sigma`."""
        if sigma == 0:
            return float(self.weight)
        log_ratio = -self.power * (math.log(self.middle) + 2 * math.log(sigma))
        return 1 + (self.weight - 1) * (1 + math.tanh(log_ratio / 2)) / 2


class TableWeight(WeightSchedule):
    """Weights given at some noise levels, linear in ln sigma between them and constant beyond.

    Examples:
        >>> table = TableWeight(sigmas=[0.1, 1.0, 10.0], weights=[1.0, 3.0, 2.0])
        >>> [table.at(sigma) for sigma in (0.0, 0.1, 1.0, 80.0)], round(table.at(10**0.5), 6)
        ([1.0, 1.0, 3.0, 2.0], 2.5)
    """

    def __init__(self, sigmas: Sequence[float], weights: Sequence[float]) -> None:
        """`weights` at the ascending levels `sigmas`.

        Raises:
            ValueError: unless the levels are positive and ascend, and there is one finite weight for each.
        """
        rising = all(low < high for low, high in zip([0.0, *sigmas], [*sigmas, math.inf], strict=True))
        if not (sigmas and rising and len(weights) == len(sigmas) and all(map(math.isfinite, weights))):
            raise ValueError(
                f"TableWeight needs ascending positive sigmas and a finite weight for each, got {sigmas} and {weights}"
            )
        self.sigmas, self.weights = list(sigmas), list(weights)
        self.bounds = min(weights), max(weights)

    def at(self, sigma: float) -> float:
        """Return the weight at `sigma`, of any size."""
        i = bisect_left(self.sigmas, sigma)
        if i in (0, len(self.sigmas)):
            return float(self.weights[0 if i == 0 else -1])
        low, high = self.sigmas[i - 1], self.sigmas[i]
        share = math.log(sigma / low) / math.log(high / low)
        return (1 - share) * self.weights[i - 1] + share * self.weights[i]
