"""Beta-CFG: a normalized difference, weighted by the density of a Beta distribution over the steps.

Malarz et al. 2025, "Classifier-free Guidance with Adaptive Scaling", https://arxiv.org/abs/2502.10574. At step i of N,
for each sample,

    eps = eps_neg + w Beta(i / N; a, b) (eps_pos - eps_neg) / |eps_pos - eps_neg|^gamma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import TINY, Pair, PairCombination, row_norm

__all__ = ["BetaWeighted"]


class BetaWeighted(PairCombination):
    """Beta-CFG. Plain at a = b = 1 and gamma = 0.

    With a > 1 the first step follows the negative alone, as published. With gamma > 0 the weight w has the unit
    |eps|^gamma, so the rule does not approach the positive as w approaches 1; at w = 1 it is off like every rule.
    """

    def __init__(self, *, a: float = 2.0, b: float = 3.0, gamma: float = 1.0) -> None:
        """Shape `a` >= 1 and `b` > 0 of the Beta distribution; `gamma` in [0, 1] normalizes the difference.

        Raises:
            ValueError: out of these ranges; with a < 1 the density of the first step is infinite.
        """
        if not (1 <= a < math.inf and 0 < b < math.inf and 0 <= gamma <= 1):
            raise ValueError(f"BetaWeighted needs a >= 1, b > 0 and gamma between 0 and 1, got {a}, {b} and {gamma}")
        self.a, self.b, self.gamma = a, b, gamma

    def density(self, p: float) -> float:
        """Return p^(a - 1) (1 - p)^(b - 1) Gamma(a + b) / (Gamma(a) Gamma(b)), for 0 <= `p` < 1."""
        constant = math.exp(math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b))
        return constant * p ** (self.a - 1) * (1 - p) ** (self.b - 1)

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return -D_pos + D_neg + w Beta (D_pos - D_neg) / |eps_pos - eps_neg|^gamma."""
        difference = pair.difference
        size = row_norm(difference) / pair.sigma
        unit = torch.where(size > 0, size.clamp(min=TINY) ** -self.gamma, 0.0)
        factor = pair.weight * self.density(trajectory.step / trajectory.steps) * unit - 1
        return (factor * difference.double()).to(difference)
