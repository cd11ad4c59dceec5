r"""Factors of a step size that depend on the noise level.

Papers state steps in variance-preserving coordinates x_VP = sqrt(abar) x, with 1 / sqrt(abar) = sqrt(1 + sigma^2); the
data then has to have unit variance. Their gradients are g_VP = sqrt(1 + sigma^2) g, and a displacement of their next
state is sqrt(1 + sigma'^2) times as large here. All conversions are powers of these three numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from lightning_guide.guidance.energy.point import Point
from lightning_guide.recipe import Recorded

__all__ = ["Balanced", "PowerLaw", "Schedule"]


class Schedule(Recorded, ABC):
    """A factor c of a step size."""

    @abstractmethod
    def at(self, point: Point) -> float:
        """c at `point`."""


class PowerLaw(Schedule):
    """sigma^a (1 + sigma^2)^(b / 2) (1 + sigma'^2)^(c / 2); all powers 0, the default, is the constant 1."""

    def __init__(self, sigma: float = 0.0, *, scale: float = 0.0, scale_next: float = 0.0) -> None:
        """Powers a of `sigma`, b of the `scale` sqrt(1 + sigma^2), c of that at the next level, `scale_next`."""
        self.sigma, self.scale, self.scale_next = sigma, scale, scale_next

    def at(self, point: Point) -> float:
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

    def at(self, point: Point) -> float:
        """The share of this step; without known levels that of the only one."""
        levels = point.trajectory.levels
        if self.kind == "constant" or len(levels) < 2:
            return self.schedule.at(point)
        alphas = [(1 + low**2) / (1 + high**2) for high, low in zip(levels, levels[1:], strict=False)]
        shares = alphas if self.kind == "increase" else [1 - alpha for alpha in alphas]
        return shares[point.trajectory.step] * len(shares) / sum(shares) * self.schedule.at(point)
