"""Guidance schedules: weights as functions of the noise level, and guidance in some of the steps only; w = 1 is off.

Curves over sigma: `weights`. Intervals: Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724. The level is that
of the predictor, decided once for each step. `StepWindow` counts in steps, for methods that are published so;
`Interval` does not depend on the number of steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import Combination, Plain, Wrapping
from lightning_guide.utils.arguments import CheckedArguments

__all__ = ["Interval", "StepWindow", "WeightSchedule", "guides_at", "weight_at"]


class WeightSchedule(CheckedArguments, ABC):
    """Base of guidance weights that depend on sigma.

    Attributes:
        bounds: the least and the greatest weight where it guides; None if they are not known.
    """

    bounds: tuple[float, float] | None = None

    @abstractmethod
    def at(self, sigma: float) -> float:
        """Return the weight at noise level `sigma`; 1 means that the negative is not evaluated, unless by CFG++."""

    def guides(self, sigma: float) -> bool:
        """Return whether there is guidance at `sigma`; where no weight guides, the positive is alone in every rule."""
        return True


class Interval(WeightSchedule):
    """Guidance interval: `weight` for low < sigma <= high, 1 elsewhere.

    Examples:
        >>> interval = Interval(2.0, low=0.3, high=5.0)
        >>> [interval.at(sigma) for sigma in (0.3, 0.31, 5.0, 5.1)]
        [1.0, 2.0, 2.0, 1.0]
    """

    def __init__(self, weight: float | WeightSchedule, low: float, high: float) -> None:
        """`weight` inside the interval (`low`, `high`] of noise levels; a schedule can be restricted as well.

        Raises:
            ValueError: if the interval is empty, or the weight is not finite.
        """
        if not 0 <= low < high:
            raise ValueError(f"a guidance interval needs 0 <= low < high in sigma, got low={low}, high={high}")
        if not isinstance(weight, WeightSchedule) and not math.isfinite(weight):
            raise ValueError(f"a guidance interval needs a finite weight, got {weight}")
        self.weight, self.low, self.high = weight, low, high
        self.bounds = weight.bounds if isinstance(weight, WeightSchedule) else (weight, weight)

    def at(self, sigma: float) -> float:
        """Return `weight` inside, 1 outside."""
        return weight_at(self.weight, sigma) if self.low < sigma <= self.high else 1.0

    def guides(self, sigma: float) -> bool:
        """Return whether `sigma` is inside, and `weight` guides there."""
        return self.low < sigma <= self.high and guides_at(self.weight, sigma)


def weight_at(weight: float | WeightSchedule, sigma: float) -> float:
    """Return the number of a weight or schedule at `sigma`."""
    return weight.at(sigma) if isinstance(weight, WeightSchedule) else float(weight)


def guides_at(weight: float | WeightSchedule, sigma: float) -> bool:
    """Return whether a weight or schedule guides at `sigma`."""
    return weight.guides(sigma) if isinstance(weight, WeightSchedule) else True


class StepWindow(Wrapping):
    """Window of steps: `combination` in the steps i of N with low <= i / N < high, i = 0 ... N - 1.

    Outside the positive is alone, and the negatives are not called. All stages of a step count as that step.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, combination: Combination | None = None) -> None:
        """`low` and `high` are fractions of the trajectory; `combination` defaults to `Plain`.

        Raises:
            ValueError: unless 0 <= low < high <= 1.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(f"a window of steps needs 0 <= low < high <= 1, got low={low}, high={high}")
        self.low, self.high = low, high
        self.combination = combination or Plain()

    def weights(self, weights: Sequence[float], trajectory: Trajectory) -> list[float]:
        """Return the weights of the inner rule inside, 1 outside."""
        return super().weights(weights, trajectory) if self._inside(trajectory) else [1.0] * len(weights)

    def is_off(self, weights: Sequence[float], trajectory: Trajectory) -> bool:
        """Return whether the step is outside, or the inner rule is off."""
        return not self._inside(trajectory) or super().is_off(weights, trajectory)

    def _inside(self, trajectory: Trajectory) -> bool:
        return self.low <= trajectory.step / trajectory.steps < self.high
