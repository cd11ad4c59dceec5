"""Where a step is taken: what a step rule and an estimator know besides the gradient.

Factors of a step size that depend on the noise level.

Papers state steps in variance-preserving coordinates x_VP = sqrt(abar) x, with 1 / sqrt(abar) = sqrt(1 + sigma^2); the
data then has to have unit variance. Their gradients are g_VP = sqrt(1 + sigma^2) g, and a displacement of their next
state is sqrt(1 + sigma'^2) times as large here. All conversions are powers of these three numbers.

When to guide: a window of noise levels, and every k-th step of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Balanced", "StepContext", "PowerLaw", "Schedule", "SigmaWindow"]


@dataclass(frozen=True)
class StepContext:
    """One call of a guidance.

    `noise` (B, *) is the direction (x - D) / sigma of the prediction that is guided. `sigma` is the level of this call
    (at Heun's corrector the lower one), `sigma_next` where the step leads; `trajectory` knows step, levels and seeds.
    """

    noise: Tensor
    sigma: float
    sigma_next: float
    trajectory: Trajectory


class Schedule(HasRecipe, ABC):
    """A factor c of a step size."""

    @abstractmethod
    def at(self, point: StepContext) -> float:
        """c at `point`."""


class PowerLaw(Schedule):
    """sigma^a (1 + sigma^2)^(b / 2) (1 + sigma'^2)^(c / 2); all powers 0, the default, is the constant 1."""

    def __init__(self, sigma: float = 0.0, *, scale: float = 0.0, scale_next: float = 0.0) -> None:
        """Powers a of `sigma`, b of the `scale` sqrt(1 + sigma^2), c of that at the next level, `scale_next`."""
        self.sigma, self.scale, self.scale_next = sigma, scale, scale_next

    def at(self, point: StepContext) -> float:
        """The product of the powers."""
        scale, scale_next = (1 + point.sigma**2) ** 0.5, (1 + point.sigma_next**2) ** 0.5
        return float(point.sigma**self.sigma * scale**self.scale * scale_next**self.scale_next)


class Balanced(Schedule):
    """T s / (sum of s over the T steps), times another `schedule`: TFG's, so that the mean over the steps is 1.

    Ye et al. 2024, https://arxiv.org/abs/2409.15761: s is alpha = abar / abar' ("increase"), 1 - alpha ("decrease") or
    1 ("constant"), with alpha = (1 + sigma'^2) / (1 + sigma^2).
    """

    def __init__(
        self, kind: Literal["increase", "decrease", "constant"] = "increase", *, schedule: Schedule | None = None
    ) -> None:
        """`kind` of s; `schedule` defaults to the factor 1.

        Raises:
            ValueError: if `kind` is unknown.
        """
        if kind not in ("increase", "decrease", "constant"):
            raise ValueError(f"a balanced schedule is 'increase', 'decrease' or 'constant', got {kind!r}")
        self.kind, self.schedule = kind, schedule or PowerLaw()

    def at(self, point: StepContext) -> float:
        """The share of this step; without known levels that of the only one."""
        levels = point.trajectory.levels
        if self.kind == "constant" or len(levels) < 2:
            return self.schedule.at(point)
        alphas = [(1 + low**2) / (1 + high**2) for high, low in zip(levels, levels[1:], strict=False)]
        shares = alphas if self.kind == "increase" else [1 - alpha for alpha in alphas]
        return shares[point.trajectory.step] * len(shares) / sum(shares) * self.schedule.at(point)


class SigmaWindow(HasRecipe):
    """Steps that begin at low < sigma <= high, and of those with the numbers 0, every, 2 every, ... only.

    With the linear schedule of most papers the time 100 of 1000 is sigma = .34, 200 .72, 300 1.24, 400 2.04, 500 3.44,
    700 12, 800 25.5.
    """

    def __init__(self, low: float = 0.0, high: float = math.inf, *, every: int = 1) -> None:
        """`low` and `high` are noise levels; `every` counts the steps of the trajectory.

        Raises:
            ValueError: if the window is empty or `every` is less than 1.
        """
        if not 0 <= low < high or every < 1:
            raise ValueError(f"a window needs 0 <= low < high in sigma and every >= 1, got {low}, {high} and {every}")
        self.low, self.high, self.every = low, high, every

    def opens(self, trajectory: Trajectory) -> bool:
        """Whether the current step is guided."""
        return self.low < trajectory.sigma <= self.high and trajectory.step % self.every == 0
