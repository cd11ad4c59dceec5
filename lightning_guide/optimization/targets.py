"""Target schedules: the label y = g^T x_0 on which the samples of the next round are conditioned.

g = grad f(z) is the gradient at a sample z, or at the mean of a round. Guo et al. 2024,
https://arxiv.org/abs/2404.14743, algorithm 1, and the constants of its experiments. The constant-eta rule of the
paper's analysis has no target: it is the strength `Tilt`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.utils.devices import to_device
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["GainTarget", "GoalTarget", "Target"]


class Target(HasRecipe, ABC):
    """Rule for y."""

    @abstractmethod
    def at(self, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,) from `along` g^T z (B,) and `value` f(z) (B,)."""

    def groups(self, count: int) -> dict[str, slice]:
        """Return by name those of `count` samples that share a goal; by default none."""
        return {}

    def at_samples(self, rows: Tensor, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,) at the samples with the numbers `rows` (B,); by default `at`."""
        return self.at(along, value)


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

    def __init__(self, goal: float | Sequence[float]) -> None:
        """Set `goal` in units of the objective, or several: sample i has goal i modulo their number.

        Several need gradients at each sample, and divide the prompts or classes among them likewise.

        Raises:
            ValueError: if there is none, or one is not finite.
        """
        self.goals = [float(each) for each in ([goal] if isinstance(goal, int | float) else goal)]
        if not self.goals or not all(map(math.isfinite, self.goals)):
            raise ValueError(f"GoalTarget needs a finite goal, or several, got {goal}")

    def groups(self, count: int) -> dict[str, slice]:
        """Return the samples of each goal, if there are several."""
        names = [f"goal_{goal:g}" for goal in self.goals]
        return {name: slice(i, count, len(names)) for i, name in enumerate(names)} if len(names) > 1 else {}

    def at(self, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,).

        Raises:
            ValueError: if there are several goals.
        """
        if len(self.goals) > 1:
            raise ValueError(f"several goals, {self.goals}, are those of samples; expected at: sample, or one goal")
        return self.goals[0] - value + along

    def at_samples(self, rows: Tensor, along: Tensor, value: Tensor) -> Tensor:
        """Return y (B,)."""
        goals = to_device(torch.tensor(self.goals, dtype=value.dtype), value.device)
        return goals[rows % len(self.goals)] - value + along
