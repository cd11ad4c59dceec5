"""Magnitude-aware guidance (MAMBO-G): a weaker push where the difference is large relative to the prediction.

Zhu et al. 2025, "MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance", https://arxiv.org/abs/2508.03442. In the
velocities v of a rectified flow, for each sample,

    w_eff = 1 + (w - 1) exp(-alpha |v_pos - v_neg| / |v_neg|).
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import TINY, Pair, PairCombination, row_norm

__all__ = ["MagnitudeAware"]


class MagnitudeAware(PairCombination):
    """MAMBO-G: D_pos + (w_eff - 1) (D_pos - D_neg). Plain at alpha = 0."""

    def __init__(self, *, alpha: float = 8.0) -> None:
        """`alpha` >= 0 is the rate at which the push decays with the ratio of the norms.

        Raises:
            ValueError: if `alpha` is negative or not finite.
        """
        if not 0 <= alpha < math.inf:
            raise ValueError(f"MagnitudeAware needs a finite alpha >= 0, got {alpha}")
        self.alpha = alpha

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return (w_eff - 1) (D_pos - D_neg)."""
        pos, neg = pair.velocity
        fading = (-self.alpha * row_norm(pos - neg) / row_norm(neg).clamp(min=TINY)).exp()
        return (pair.weight - 1) * fading.to(pos) * pair.difference
