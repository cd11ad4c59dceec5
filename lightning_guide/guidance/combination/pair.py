"""Rules that look at the positive and one negative at a time: D = D_pos + sum_i push_i."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combination.combination import Branch, Combination, Combine

__all__ = ["Pair", "PairCombination", "Push", "moved"]


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


def moved(guided: Prediction, push: Tensor, pair: Pair) -> Prediction:
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
                    guided = moved(guided, push(pair), pair)
            return guided

        return combine

    @abstractmethod
    def start_push(self, trajectory: Trajectory) -> Push:
        """The step of one negative, with a fresh state; it is asked only where w is not 1."""
