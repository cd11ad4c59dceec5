"""Target schedules: the label y = g^T x_0 on which the samples of the next round are conditioned.

g = grad f(z) is the gradient at a sample z, or at the mean of a round. Guo et al. 2024,
https://arxiv.org/abs/2404.14743, algorithm 1, and the constants of its experiments. The constant-eta rule of the
paper's analysis has no target: it is the strength `Tilt`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from lightning_guide.utils.recipe import HasRecipe

__all__ = ["GainTarget", "GoalTarget", "Target"]


class Target(HasRecipe, ABC):
    """Rule for y."""

    @abstractmethod
    def at(self, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,) from `along` g^T z (B,) and `value` f(z) (B,)."""


class GainTarget(Target):
    """Constant gain, y = delta + g^T z: the linearized objective increases by delta.

    On Gaussian data N(mu, Sigma) rounds with the exact posterior converge to z = mu + (delta / s^2) Sigma grad f(z)
    with s the noise of the label, the maximum of f(x) - lambda |x - mu|^2_{Sigma^-1} / 2 with lambda = s^2 / delta.
    """

    def __init__(self, delta: float = 0.2) -> None:
        """Set `delta` in units of the objective.

        Raises:
            ValueError: if it is not positive.
        """
        if not (delta > 0 and math.isfinite(delta)):
            raise ValueError(f"GainTarget needs delta > 0 and finite, got {delta}")
        self.delta = delta

    def at(self, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,)."""
        return self.delta + along


class GoalTarget(Target):
    """Fixed goal, y = (goal - f(z)) + g^T z: the linearized objective f(z) + g^T (x - z) reaches the goal.

    The rule of the paper's experiment with images, there with goals 2, 4 and 10.
    """

    def __init__(self, goal: float) -> None:
        """Set `goal` in units of the objective.

        Raises:
            ValueError: if it is not finite.
        """
        if not math.isfinite(goal):
            raise ValueError(f"GoalTarget needs a finite goal, got {goal}")
        self.goal = goal

    def at(self, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,)."""
        return self.goal - value + along
