"""Perp-Neg: negatives with conditions of their own, without what they have in common with the positive.

Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm", https://arxiv.org/abs/2304.04968, equations as we
know them; the paper was not read. Beside the unconditional model there are negatives with other conditions, and only
the parts of them count that are perpendicular to the difference of the positive:

    D = D_u + w [D_pos - D_u - sum_i (w_i - 1) perp_i],    perp_i = (D_i - D_u) - its part along D_pos - D_u.

The paper's weight of a negative is w_i - 1 here, so that w_i = 1 is off; in eps the formula is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import TINY, Branch, Combination, Negatives, Pair, dot, move

__all__ = ["PerpendicularNegatives"]


class PerpendicularNegatives(Combination):
    """Perp-Neg. The first negative is the unconditional model, the others are made of `FixedCondition`.

    A negative that wants what the positive wants, or the opposite, changes nothing: the rule is plain guidance by the
    first. The first is evaluated while any weight differs from 1. A separate noise direction is combined by the plain
    rule for the positive and the first alone. Norms and products are those of each sample.
    """

    def called(self, weights: Sequence[float], trajectory: Trajectory) -> list[bool]:
        """Return the first with all that are not off."""
        return [not self.is_off(weights, trajectory), *(weight != 1 for weight in weights[1:])]

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the positive where all weights are 1, else the rule."""
        (weight, unconditional), *others = negatives
        pos = positive(x, sigma)
        if self.is_off([weight for weight, _ in negatives], trajectory):
            return pos
        pair = Pair(pos, unconditional(x, sigma), weight, x, sigma)
        along = pair.difference
        push, square = (weight - 1) * along, dot(along, along).clamp(min=TINY)
        for other, negative in others:
            if other != 1:
                away = Pair(negative(x, sigma), pair.neg, other, x, sigma).difference
                perpendicular = away - (dot(away, along) / square).to(away) * along
                push = push - weight * (other - 1) * perpendicular
        return move(pos, push, pair)
