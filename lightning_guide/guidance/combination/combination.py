r"""How the positive and the negative predictions become one: the plain line, and the base of everything that bends it.

The plain rule is D = D_pos + sum_i (w_i - 1) (D_pos - D_i). A combination receives the branches as functions, so that
it decides which of them are evaluated at all: w = 1 means off, and that negative is not called. Several negatives are
pushed away from one by one, all from the same positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.recipe import Recorded

__all__ = ["Branch", "Combination", "Combine", "PairCombination", "Pair", "Plain", "Push"]

Branch = Callable[[Tensor, Tensor], Prediction]
"""One network, or guidance, under a fixed condition: (x, sigma) -> prediction. Every call costs an evaluation."""

Combine = Callable[[Branch, Sequence[tuple[float, Branch]], Tensor, Tensor], Prediction]
"""(positive, [(weight, negative), ...], x (B, *), sigma ()) -> the guided prediction."""


class Combination(Recorded, ABC):
    """Base of the rules that make one prediction out of a positive and its negatives."""

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


@dataclass(frozen=True)
class Pair:
    """A positive and one negative prediction at (x, sigma), with the weight w between them.

    The same two predictions in the three spaces that papers write in, each `(B, *)`: the clean estimate D, the noise
    eps = (x - D) / sigma, and the velocity v = eps - D of a rectified flow, whose time is sigma / (1 + sigma).
    """

    pos: Prediction
    neg: Prediction
    weight: float
    x: Tensor
    sigma: Tensor

    @property
    def clean(self) -> tuple[Tensor, Tensor]:
        """(D_pos, D_neg)."""
        return self.pos.clean, self.neg.clean

    @property
    def noise(self) -> tuple[Tensor, Tensor]:
        """(eps_pos, eps_neg)."""
        return self.pos.direction(self.x, self.sigma), self.neg.direction(self.x, self.sigma)

    @property
    def velocity(self) -> tuple[Tensor, Tensor]:
        """(v_pos, v_neg)."""
        (pos, neg), (clean_pos, clean_neg) = self.noise, self.clean
        return pos - clean_pos, neg - clean_neg

    def from_noise(self, push: Tensor) -> Tensor:
        """A step `push` (B, *) of eps as a step of D: -sigma push."""
        return -self.sigma * push

    def from_velocity(self, push: Tensor) -> Tensor:
        """A step `push` (B, *) of v as a step of D: -sigma / (1 + sigma) push."""
        return -self.sigma / (1 + self.sigma) * push


Push = Callable[[Pair], Tensor]
"""What is added to D_pos because of one negative, (B, *); (w - 1) (D_pos - D_neg) in the plain rule."""


class PairCombination(Combination):
    """Base of rules that treat each negative by itself: D = D_pos + sum_i push_i, each with a state of its own.

    A noise direction that a branch gives apart from its clean estimate takes the same step, -push / sigma.
    """

    def start(self, trajectory: Trajectory) -> Combine:
        """The rule with one fresh `Push` for each negative."""
        pushes: list[Push] = []

        def combine(
            positive: Branch, negatives: Sequence[tuple[float, Branch]], x: Tensor, sigma: Tensor
        ) -> Prediction:
            while len(pushes) < len(negatives):
                pushes.append(self.start_push(trajectory))
            guided = pos = positive(x, sigma)
            for push, (weight, negative) in zip(pushes, negatives, strict=True):
                if weight != 1:
                    step = push(Pair(pos, negative(x, sigma), weight, x, sigma))
                    noise = None if guided.noise is None else guided.noise - step / sigma
                    guided = Prediction(guided.clean + step, noise)
            return guided

        return combine

    @abstractmethod
    def start_push(self, trajectory: Trajectory) -> Push:
        """The step of one negative, with a fresh state; it is asked only where w is not 1."""
