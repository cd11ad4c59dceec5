"""Base of combinations, the plain rule of guidance, and the base of rules for one positive and one negative at a time.

The plain rule is D = D_pos + sum_i (w_i - 1) (D_pos - D_i). A combination receives the branches as functions, so that
it decides which of them are evaluated: w = 1 means off, and that negative is not called. Several negatives are pushed
away from one by one, all from the same positive.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory, expand
from lightning_guide.utils.arguments import CheckedArguments

__all__ = [
    "Branch",
    "Combination",
    "Negatives",
    "Pair",
    "PairCombination",
    "Plain",
    "StepMemory",
    "TINY",
    "Wrapping",
    "dot",
    "move",
    "row_norm",
]


Branch = Callable[[Tensor, Tensor], Prediction]
"""One network, or guidance, under a fixed condition: (x, sigma) -> prediction. Every call costs an evaluation."""

Negatives = Sequence[tuple[float, Branch]]
"""[(weight, negative), ...]"""


class Combination(CheckedArguments, ABC):
    """Base of the rules that combine a positive and its negatives to one prediction.

    `Guided` makes a copy for each trajectory: attributes of a rule are its state along that one trajectory.

    Attributes:
        calls_at_x: whether the branches are called at the x of `combine` itself, not at a copy to be differentiated.
    """

    calls_at_x: bool = True

    def weights(self, weights: Sequence[float], trajectory: Trajectory) -> list[float]:
        """Return the `weights` in effect at this point of `trajectory`, decided before any branch is evaluated."""
        return list(weights)

    def called(self, weights: Sequence[float], trajectory: Trajectory) -> list[bool]:
        """Return which negatives may share the call of the positive at this point: those that the rule will call."""
        return [weight not in (0, 1) for weight in weights]

    def is_off(self, weights: Sequence[float], trajectory: Trajectory) -> bool:
        """Return whether the positive is alone at the `weights` in effect: the rule is not asked to combine then."""
        return all(weight == 1 for weight in weights)

    @abstractmethod
    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the guided prediction at `x` (B, *) and `sigma` (), from the branches with the weights in effect."""


class Wrapping(Combination):
    """Base of rules around an inner `combination`, which decides what this one does not."""

    combination: Combination

    @property
    def calls_at_x(self) -> bool:  # type: ignore[override]
        """Whether the inner rule does."""
        return self.combination.calls_at_x

    def watch(self, combination: Combination | None) -> Combination:
        """Return the inner rule, `Plain` by default, of a rule that watches the branches.

        Raises:
            ValueError: if it calls them elsewhere.
        """
        if combination is not None and not combination.calls_at_x:
            raise ValueError(f"{type(self).__name__} cannot watch the calls of RectifiedGradient, which differentiates")
        return combination or Plain()

    def weights(self, weights: Sequence[float], trajectory: Trajectory) -> list[float]:
        """Return those of the inner rule."""
        return self.combination.weights(weights, trajectory)

    def called(self, weights: Sequence[float], trajectory: Trajectory) -> list[bool]:
        """Return what the inner rule calls."""
        return self.combination.called(weights, trajectory)

    def is_off(self, weights: Sequence[float], trajectory: Trajectory) -> bool:
        """Return whether the inner rule is off."""
        return self.combination.is_off(weights, trajectory)

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction of the inner rule."""
        return self.combination.combine(positive, negatives, x, sigma, trajectory)


class Plain(Combination):
    """D_pos + sum_i (w_i - 1) (D_pos - D_i); with one negative exactly D_i at w = 0 and exactly D_pos at w = 1.

    Branches with a separate noise direction are combined by the same rule in both.
    """

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the sum."""
        guided = pos = positive(x, sigma)
        for weight, negative in negatives:
            if weight != 1:
                guided = _step(guided, pos, negative(x, sigma), weight, x, sigma)
        return guided


def _step(guided: Prediction, pos: Prediction, neg: Prediction, weight: float, x: Tensor, sigma: Tensor) -> Prediction:
    """Return `guided` + (weight - 1) (`pos` - `neg`), exactly `neg` at weight 0 for the first negative."""

    def line(total: Tensor, p: Tensor, n: Tensor) -> Tensor:
        if guided is pos:
            return torch.lerp(n, p, weight)
        difference = p - n
        return torch.add(total, difference, alpha=weight - 1, out=None if torch.is_grad_enabled() else difference)

    clean = line(guided.clean, pos.clean, neg.clean)
    if guided.noise is None and neg.noise is None:
        return replace(guided, clean=clean)
    return replace(guided, clean=clean, noise=line(*(each.direction(x, sigma) for each in (guided, pos, neg))))


@dataclass(frozen=True)
class Pair:
    """A positive and one negative prediction at (x, sigma), with the weight w between them.

    The properties are their clean estimates in the three spaces of the papers, each `(B, *)` and float32 at least: D
    itself, the noise eps = (x - D) / sigma, and the velocity v = eps - D of the rectified flow
    x_t = (1 - t) x_0 + t eps, which in these coordinates is x / (1 + sigma) at the time t = sigma / (1 + sigma).
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
        """Convert a step `push` (B, *) of eps to a step of D: -sigma push."""
        return -_wide(self.sigma) * push

    def from_velocity(self, push: Tensor) -> Tensor:
        """Convert a step `push` (B, *) of v to a step of D: -sigma / (1 + sigma) push."""
        sigma = _wide(self.sigma)
        return -sigma / (1 + sigma) * push


def _wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def move(guided: Prediction, push: Tensor, pair: Pair) -> Prediction:
    """Return `guided` with `push` (B, *) added to its clean estimate, in the dtype of `guided`.

    Its noise changes by -push / sigma. For branches with a separate noise direction, the excess of that direction over
    (x - D) / sigma is combined by the plain rule.
    """
    clean = (guided.clean + push).to(guided.clean.dtype)
    if all(each.noise is None for each in (guided, pair.pos, pair.neg)):
        return replace(guided, clean=clean)
    x, sigma = pair.x, pair.sigma
    excess = [each.direction(x, sigma) - Prediction(each.clean).direction(x, sigma) for each in (pair.pos, pair.neg)]
    noise = guided.direction(x, sigma) - push / sigma + (pair.weight - 1) * (excess[0] - excess[1])
    return replace(guided, clean=clean, noise=noise.to(clean.dtype))


class StepMemory:
    """A tensor of each step, of which the next one reads that of the step before; a repeated step replaces its own."""

    def __init__(self) -> None:
        """Begin without any."""
        self._step = -1
        self._before: Tensor | None = None
        self._now: Tensor | None = None

    def before(self, trajectory: Trajectory) -> Tensor | None:
        """Return what was kept in the step before; None in the first one."""
        if trajectory.step != self._step:
            self._step, self._before = trajectory.step, self._now
        return self._before

    def keep(self, tensor: Tensor, trajectory: Trajectory) -> None:
        """Keep that of this step, by its predictor."""
        if trajectory.stage == "predictor":
            self._now = tensor.detach()


class PairCombination(Combination):
    """Base of rules that treat each negative by itself: D = D_pos + sum_i push_i.

    Each negative has a copy of the rule: attributes are the state of one negative along one trajectory.
    """

    _copies: Sequence[PairCombination] = ()

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the positive, pushed once for each negative."""
        self._copies = self._copies or [copy.deepcopy(self) for _ in negatives]
        guided = pos = positive(x, sigma)
        for rule, (weight, negative) in zip(self._copies, negatives, strict=True):
            if weight != 1:
                pair = Pair(pos, negative(x, sigma), weight, x, sigma)
                guided = move(guided, rule.push(pair, trajectory), pair)
        return guided

    @abstractmethod
    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return the step (B, *) added to D_pos; (w - 1) (D_pos - D_neg) in the plain rule. Not called at w = 1."""


# Inner products and norms of samples, over all but the batch, in float64: neither do the squares of half precision
# overflow nor those of small differences vanish.

TINY = 1e-60
"""Smallest denominator: far below any norm that float32 can hold, with a square that float64 can hold."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b> of each sample, float64, `(B, 1, ..., 1)` for `a` and `b` (B, *)."""
    return expand(torch.linalg.vecdot(a.flatten(1).double(), b.flatten(1).double()), a)


def row_norm(a: Tensor) -> Tensor:
    """Return |a| of each sample, float64, `(B, 1, ..., 1)` for `a` (B, *)."""
    return torch.linalg.vector_norm(a.double(), dim=list(range(1, a.ndim)), keepdim=True)
