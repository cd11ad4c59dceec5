"""Schedules of step sizes over the noise level, and windows of guided steps.

Papers state steps in variance-preserving coordinates x_VP = sqrt(abar) x, with 1 / sqrt(abar) = sqrt(1 + sigma^2); the
data then has to have unit variance. Their gradients are g_VP = sqrt(1 + sigma^2) g, and a displacement of their next
state is sqrt(1 + sigma'^2) times as large here. All conversions are powers of these three numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Balanced", "PowerLaw", "Schedule", "SigmaWindow", "StepContext"]


@dataclass(frozen=True)
class StepContext:
    """Inputs of step rules, schedules and estimators besides the gradient, for one call of a guidance.

    Attributes:
        noise: direction (x - D) / sigma of the guided prediction (B, *).
        sigma: noise level of this call (at Heun's corrector the lower one).
        sigma_next: noise level after the step.
        trajectory: sampler state, with step, levels and seeds.
    """

    noise: Tensor
    sigma: float
    sigma_next: float
    trajectory: Trajectory


class Schedule(HasRecipe, ABC):
    """A factor c of a step size."""

    @abstractmethod
    def at(self, context: StepContext) -> float:
        """Return c for one step."""


class PowerLaw(Schedule):
    """sigma^a (1 + sigma^2)^(b / 2) (1 + sigma'^2)^(c / 2); all powers 0, the default, is the constant 1."""

    def __init__(self, sigma: float = 0.0, *, scale: float = 0.0, scale_next: float = 0.0) -> None:
        """Set the powers.

        Args:
            sigma: power a of sigma.
            scale: power b of sqrt(1 + sigma^2).
            scale_next: power c of sqrt(1 + sigma'^2), at the next level.
        """
        self.sigma, self.scale, self.scale_next = sigma, scale, scale_next

    def at(self, context: StepContext) -> float:
        """Return the product of the powers."""
        scale, scale_next = (1 + context.sigma**2) ** 0.5, (1 + context.sigma_next**2) ** 0.5
        return float(context.sigma**self.sigma * scale**self.scale * scale_next**self.scale_next)


class Balanced(Schedule):
    """TFG's schedule T s / (sum of s over the T steps), with mean 1 over the steps, times another `schedule`.

    Ye et al. 2024, https://arxiv.org/abs/2409.15761: s is alpha = abar / abar' ("increase"), 1 - alpha ("decrease") or
    1 ("constant"), with alpha = (1 + sigma'^2) / (1 + sigma^2).
    """

    def __init__(
        self, kind: Literal["increase", "decrease", "constant"] = "increase", *, schedule: Schedule | None = None
    ) -> None:
        """Choose the `kind` of s; `schedule` defaults to the factor 1.

        Raises:
            ValueError: if `kind` is unknown.
        """
        if kind not in ("increase", "decrease", "constant"):
            raise ValueError(f"a balanced schedule is 'increase', 'decrease' or 'constant', got {kind!r}")
        self.kind, self.schedule = kind, schedule or PowerLaw()

    def at(self, context: StepContext) -> float:
        """Return the factor of this step; for fewer than two known levels, 1 times `schedule`."""
        levels = context.trajectory.levels
        if self.kind == "constant" or len(levels) < 2:
            return self.schedule.at(context)
        alphas = [(1 + low**2) / (1 + high**2) for high, low in zip(levels, levels[1:], strict=False)]
        factors = alphas if self.kind == "increase" else [1 - alpha for alpha in alphas]
        return factors[context.trajectory.step] * len(factors) / sum(factors) * self.schedule.at(context)


class SigmaWindow(HasRecipe):
    """A window of guided steps: those that begin at low < sigma <= high and have a number divisible by `every`.

    With the linear schedule of most papers the times 100, 200, 300, 400, 500, 700, 800 of 1000 are sigma = 0.34, 0.72,
    1.24, 2.04, 3.44, 12, 25.5.
    """

    def __init__(self, low: float = 0.0, high: float = math.inf, *, every: int = 1) -> None:
        """Guide between the noise levels `low` and `high`, every `every` steps of the trajectory.

        Raises:
            ValueError: if the window is empty or `every` is less than 1.
        """
        if not 0 <= low < high or every < 1:
            raise ValueError(f"a window needs 0 <= low < high in sigma and every >= 1, got {low}, {high} and {every}")
        self.low, self.high, self.every = low, high, every

    def opens(self, trajectory: Trajectory) -> bool:
        """Return whether the current step is guided."""
        return self.low < trajectory.sigma <= self.high and trajectory.step % self.every == 0

    def never_opens(self, steps: Sequence[Trajectory], who: str) -> Iterator[str]:
        """Yield a sentence if none of the `steps` of a sampler is guided."""
        if not any(self.opens(step) for step in steps):
            levels = f"{steps[0].sigma:.4g} to {steps[-1].sigma:.4g}"
            yield f"{who} is off in all {len(steps)} steps of its sampler: no noise level, {levels}, lies in its window"
