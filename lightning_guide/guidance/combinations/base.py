"""How the positive and the negative predictions become one: the plain line, and the base of everything that bends it.

The plain rule is D = D_pos + sum_i (w_i - 1) (D_pos - D_i). A combination receives the branches as functions, so that
it decides which of them are evaluated at all: w = 1 means off, and that negative is not called. Several negatives are
pushed away from one by one, all from the same positive.

Rules that look at the positive and one negative at a time: D = D_pos + sum_i push_i.

Inner products and norms of samples, over everything but the batch.

In float64, so that neither the squares of half precision overflow nor those of small differences vanish.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory, expand
from lightning_guide.utils.recipe import HasRecipe

__all__ = [
    "Branch",
    "Combination",
    "Combine",
    "Pair",
    "PairCombination",
    "Plain",
    "Push",
    "TINY",
    "dot",
    "move",
    "row_norm",
]


Branch = Callable[[Tensor, Tensor], Prediction]


"""One network, or guidance, under a fixed condition: (x, sigma) -> prediction. Every call costs an evaluation."""


Combine = Callable[[Branch, Sequence[tuple[float, Branch]], Tensor, Tensor], Prediction]


"""(positive, [(weight, negative), ...], x (B, *), sigma ()) -> the guided prediction."""


class Combination(HasRecipe, ABC):
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


@dataclass(frozen=True)
class Pair:
    """A positive and one negative prediction at (x, sigma), with the weight w between them.

    Their clean estimates in the three spaces that papers write in, each `(B, *)` and float32 at least: D itself, the
    noise eps = (x - D) / sigma, and the velocity v = eps - D of the rectified flow x_t = (1 - t) x_0 + t eps, which
    in these coordinates is x / (1 + sigma) at the time t = sigma / (1 + sigma).
    """

    pos: Prediction
    neg: Prediction
    weight: float
    x: Tensor
    sigma: Tensor

    @property
    def clean(self) -> tuple[Tensor, Tensor]:
        """(D_pos, D_neg)."""
        return _wide(self.pos.clean), _wide(self.neg.clean)

    @property
    def difference(self) -> Tensor:
        """D_pos - D_neg."""
        pos, neg = self.clean
        return pos - neg

    @property
    def noise(self) -> tuple[Tensor, Tensor]:
        """(eps_pos, eps_neg)."""
        x, sigma = _wide(self.x), _wide(self.sigma)
        pos, neg = self.clean
        return (x - pos) / sigma, (x - neg) / sigma

    @property
    def velocity(self) -> tuple[Tensor, Tensor]:
        """(v_pos, v_neg)."""
        (pos, neg), (clean_pos, clean_neg) = self.noise, self.clean
        return pos - clean_pos, neg - clean_neg

    def from_noise(self, push: Tensor) -> Tensor:
        """A step `push` (B, *) of eps as a step of D: -sigma push."""
        return -_wide(self.sigma) * push

    def from_velocity(self, push: Tensor) -> Tensor:
        """A step `push` (B, *) of v as a step of D: -sigma / (1 + sigma) push."""
        sigma = _wide(self.sigma)
        return -sigma / (1 + sigma) * push


def _wide(tensor: Tensor) -> Tensor:
    """In float32 if it is in less."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


Push = Callable[[Pair], Tensor]


"""What is added to D_pos because of one negative, (B, *); (w - 1) (D_pos - D_neg) in the plain rule."""


def move(guided: Prediction, push: Tensor, pair: Pair) -> Prediction:
    """`guided` with `push` (B, *) added to its clean estimate, in the dtype that it has.

    Its noise moves along, by -push / sigma. Where a branch tells a noise direction apart from its clean estimate, what
    that says beyond (x - D) / sigma is combined as in the plain rule.
    """
    clean = (guided.clean + push).to(guided.clean.dtype)
    if all(each.noise is None for each in (guided, pair.pos, pair.neg)):
        return Prediction(clean)
    x, sigma = pair.x, pair.sigma
    beyond = [each.direction(x, sigma) - Prediction(each.clean).direction(x, sigma) for each in (pair.pos, pair.neg)]
    noise = guided.direction(x, sigma) - push / sigma + (pair.weight - 1) * (beyond[0] - beyond[1])
    return Prediction(clean, noise.to(clean.dtype))


class PairCombination(Combination):
    """Base of rules that treat each negative by itself: D = D_pos + sum_i push_i, each with a state of its own."""

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
                    pair = Pair(pos, negative(x, sigma), weight, x, sigma)
                    guided = move(guided, push(pair), pair)
            return guided

        return combine

    @abstractmethod
    def start_push(self, trajectory: Trajectory) -> Push:
        """The step of one negative, with a fresh state; it is asked only where w is not 1."""


TINY = 1e-60


"""What stands for 0 in a denominator: far below any norm that float32 can hold, with a square that float64 can."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, float64, `(B, 1, ..., 1)` for `a` and `b` (B, *)."""
    return expand(torch.linalg.vecdot(a.flatten(1).double(), b.flatten(1).double()), a)


def row_norm(a: Tensor) -> Tensor:
    """|a| of each sample, float64, `(B, 1, ..., 1)` for `a` (B, *)."""
    return torch.linalg.vector_norm(a.double(), dim=list(range(1, a.ndim)), keepdim=True)
