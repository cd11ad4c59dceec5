"""Adaptive projected guidance (APG): the difference with momentum, clipped, without its part along the positive.

Sadat et al. 2025, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
https://arxiv.org/abs/2410.02416, algorithm 1:

    S = (D_pos - D_neg) + momentum S_before,    U = S min(1, r / |S|),    U = U_par + U_orth along D_pos,
    D = D_pos + (w - 1) (U_orth + eta U_par).
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import TINY, Pair, PairCombination, StepMemory, dot, row_norm

__all__ = ["AdaptiveProjection"]


class AdaptiveProjection(PairCombination):
    """APG in clean space, norms and projections over all but the batch. Plain at eta = 1, r = inf, momentum = 0.

    The running sum S belongs to one negative and one trajectory. It advances once in each step, by the difference of
    the predictor. A corrector adds the sum of the steps before to its own difference and does not change it: counted as
    a step, it would oppose the running average. At eta = 0 the part of the push along D_pos is removed:

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.guidance.guided import Guided
        >>> good, bad = gaussian(torch.zeros(2), torch.eye(2)), gaussian(torch.tensor([1.0, 1.0]), torch.eye(2))
        >>> apg = Guided([bad], [3.0], positive=good, combination=AdaptiveProjection(eta=0.0))
        >>> x, sigma = torch.tensor([[2.0, 0.0]]), torch.tensor(1.0)
        >>> good(x, sigma).tolist(), bad(x, sigma).tolist(), apg(x, sigma).tolist()
        ([[1.0, 0.0]], [[1.5, 0.5]], [[1.0, -1.0]])
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
        self._sum = StepMemory()

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return (w - 1) (U_orth + eta U_par)."""
        update = pair.difference
        if self.momentum != 0:
            if (before := self._sum.before(trajectory)) is not None:
                update = update + self.momentum * before
            self._sum.keep(update, trajectory)
        return (pair.weight - 1) * self._project(self._clip(update), pair.clean[0])

    def _clip(self, update: Tensor) -> Tensor:
        """Return `update` (B, *) with a norm of at most r."""
        return update / (row_norm(update) / self.norm_threshold).clamp(min=1).to(update)

    def _project(self, update: Tensor, pos: Tensor) -> Tensor:
        """Return `update` (B, *) with its part along `pos` multiplied by eta."""
        along = dot(update, pos) / dot(pos, pos).clamp(min=TINY)
        return update + ((self.eta - 1) * along).to(update) * pos
