"""Adaptive projected guidance (APG): a difference with memory, cut to a norm, without its part along the positive.

Sadat et al. 2025, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
https://arxiv.org/abs/2410.02416, algorithm 1:

    S = (D_pos - D_neg) + momentum S_before,    U = S min(1, r / |S|),    U = U_par + U_orth along D_pos,
    D = D_pos + (w - 1) (U_orth + eta U_par).
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import TINY, Pair, PairCombination, Push, dot, row_norm

__all__ = ["AdaptiveProjection"]


class AdaptiveProjection(PairCombination):
    """APG, in clean space, norms and projections over everything but the batch. Plain at eta = 1, r = inf, momentum 0.

    The running sum S belongs to a negative and a trajectory and advances once in each step, by what the predictor
    sees; a corrector adds the same sum of the steps before to its own difference and leaves it as it is. Counted as a
    step of its own, the corrector would be pushed against the very difference that it averages with.
    """

    def __init__(self, *, eta: float = 0.0, norm_threshold: float = math.inf, momentum: float = 0.0) -> None:
        """`eta` of the part along D_pos; `norm_threshold` r, in units of |D_pos - D_neg|; `momentum` in (-1, 1).

        The paper's values: eta = 0; momentum from -0.75 to -0.5; r = 15 for SDXL. r depends on the size of the data.

        Raises:
            ValueError: if one of them is out of its range.
        """
        if not (norm_threshold > 0 and -1 < momentum < 1 and math.isfinite(eta)):
            raise ValueError(
                "AdaptiveProjection needs norm_threshold > 0, momentum between -1 and 1 and a finite eta, "
                f"got {norm_threshold}, {momentum} and {eta}"
            )
        self.eta, self.norm_threshold, self.momentum = eta, norm_threshold, momentum

    def start_push(self, trajectory: Trajectory) -> Push:
        """(w - 1) (U_orth + eta U_par), with an empty sum."""
        sums: dict[str, Tensor] = {}

        def push(pair: Pair) -> Tensor:
            update = pair.difference
            if self.momentum != 0:
                if trajectory.stage == "predictor" and "now" in sums:
                    sums["before"] = sums["now"]
                if "before" in sums:
                    update = update + self.momentum * sums["before"]
                if trajectory.stage == "predictor":
                    sums["now"] = update.detach()
            return (pair.weight - 1) * self._project(self._cut(update), pair.clean[0])

        return push

    def _cut(self, update: Tensor) -> Tensor:
        """`update` (B, *) with a norm of at most r."""
        return update / (row_norm(update) / self.norm_threshold).clamp(min=1).to(update)

    def _project(self, update: Tensor, pos: Tensor) -> Tensor:
        """`update` (B, *) with its part along `pos` multiplied by eta."""
        along = dot(update, pos) / dot(pos, pos).clamp(min=TINY)
        return update + ((self.eta - 1) * along).to(update) * pos
