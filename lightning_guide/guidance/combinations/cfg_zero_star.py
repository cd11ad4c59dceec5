"""CFG-Zero*: the negative scaled to fit the positive, and zero velocity in the first steps.

Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models",
https://arxiv.org/abs/2503.18886. In the velocities v of a rectified flow, for each sample,

    v = alpha v_neg + w (v_pos - alpha v_neg),    alpha = <v_pos, v_neg> / |v_neg|^2.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import TINY, Branch, Negatives, Pair, PairCombination, dot

__all__ = ["ZeroStar"]


class ZeroStar(PairCombination):
    """CFG-Zero*, v = v_pos + (w - 1) (v_pos - alpha v_neg). Plain at alpha = 1 and zero_steps = 0.

    v = 0 keeps the point x_t = x / (1 + sigma) of the flow in place; there eps = D and x = D + sigma eps, so that
    D = eps = x / (1 + sigma). In these first steps no network is evaluated. Where all weights are 1, the rule is off,
    its first steps included.
    """

    def __init__(self, *, zero_steps: int = 1, alpha: float | None = None) -> None:
        """The first `zero_steps` have v = 0 (the paper: about 4 % of the steps); `alpha` None is the optimum.

        Raises:
            ValueError: if `zero_steps` is negative, or `alpha` not finite.
        """
        if zero_steps < 0:
            raise ValueError(f"ZeroStar needs zero_steps >= 0, got {zero_steps}")
        if alpha is not None and not math.isfinite(alpha):
            raise ValueError(f"ZeroStar needs a finite alpha, or None for the optimum, got {alpha}")
        self.zero_steps, self.alpha = zero_steps, alpha

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return zero velocity in the first steps, then the positive and its pushes."""
        if trajectory.step < self.zero_steps and any(weight != 1 for weight, _ in negatives):
            return Prediction(x / (1 + sigma))
        return super().combine(positive, negatives, x, sigma, trajectory)

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return (w - 1) (v_pos - alpha v_neg)."""
        pos, neg = pair.velocity
        if self.alpha is None:
            scaled = (dot(pos, neg) / dot(neg, neg).clamp(min=TINY)).to(neg) * neg
        else:
            scaled = self.alpha * neg
        return pair.from_velocity((pair.weight - 1) * (pos - scaled))
