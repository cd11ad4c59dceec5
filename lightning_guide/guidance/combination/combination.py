r"""How the positive and the negative predictions become one: the plain line, and the base of everything that bends it.

The plain rule is D = D_pos + sum_i (w_i - 1) (D_pos - D_i). A combination receives the branches as functions, so that
it decides which of them are evaluated at all: w = 1 means off, and that negative is not called. Several negatives are
pushed away from one by one, all from the same positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.recipe import Recorded

__all__ = ["Branch", "Combination", "Combine", "Plain"]

Branch = Callable[[Tensor, Tensor], Prediction]
"""One network, or guidance, under a fixed condition: (x, sigma) -> prediction. Every call costs an evaluation."""

Combine = Callable[[Branch, Sequence[tuple[float, Branch]], Tensor, Tensor], Prediction]
"""(positive, [(weight, negative), ...], x (B, *), sigma ()) -> the guided prediction."""


class Combination(Recorded, ABC):
    """Base of the rules that make one prediction out of a positive and its negatives."""

    def weights(self, weights: Sequence[float], trajectory: Trajectory) -> list[float]:
        """The `weights` that count at this point of `trajectory`, known before any branch is evaluated."""
        return list(weights)

    @abstractmethod
    def start(self, trajectory: Trajectory) -> Combine:
        """The rule for one trajectory, with a fresh state."""


class Plain(Combination):
    """D_pos + sum_i (w_i - 1) (D_pos - D_i); with one negative exactly D_i at w = 0 and exactly D_pos at w = 1.

    A branch that tells its noise direction from its clean estimate is combined in both alike.
    """

    def start(self, trajectory: Trajectory) -> Combine:
        """No state."""
        return self._combine

    def _combine(
        self, positive: Branch, negatives: Sequence[tuple[float, Branch]], x: Tensor, sigma: Tensor
    ) -> Prediction:
        guided = pos = positive(x, sigma)
        for weight, negative in negatives:
            if weight != 1:
                guided = _step(guided, pos, negative(x, sigma), weight, x, sigma)
        return guided


def _step(guided: Prediction, pos: Prediction, neg: Prediction, weight: float, x: Tensor, sigma: Tensor) -> Prediction:
    """`guided` + (weight - 1) (`pos` - `neg`), exactly `neg` at weight 0 if this is the first negative."""

    def line(total: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return torch.lerp(n, p, weight) if guided is pos else (p - n).mul_(weight - 1).add_(total)

    clean = line(guided.clean, pos.clean, neg.clean)
    if guided.noise is None and neg.noise is None:
        return Prediction(clean)
    return Prediction(clean, line(*(each.direction(x, sigma) for each in (guided, pos, neg))))
