"""Guidance rescale: the guided estimate rescaled toward the standard deviation of the positive.

Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", https://arxiv.org/abs/2305.08891,
equations 15 and 16: D = phi D_g std(D_pos) / std(D_g) + (1 - phi) D_g, std over everything but the batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import TINY, Branch, Combination, Negatives, Plain, Wrapping, row_norm

__all__ = ["Rescale"]


class Rescale(Wrapping):
    """Guidance rescale: the clean estimate of an inner combination with the standard deviation of the positive's.

    At phi = 0 the result is that of the inner combination, where all weights are 1 it is the positive, both to the bit.
    A separate noise direction of the inner combination is not changed. If the inner combination does not evaluate the
    positive, nothing is rescaled.
    """

    def __init__(self, phi: float = 0.7, *, combination: Combination | None = None) -> None:
        """`phi` in [0, 1] (0.7 in the paper) and the inner `combination`; default: `Plain`.

        Raises:
            ValueError: if `phi` is outside.
        """
        if not 0 <= phi <= 1:
            raise ValueError(f"Rescale needs phi between 0 and 1, got {phi}")
        self.phi, self.combination = phi, combination or Plain()

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction of the inner rule, rescaled."""
        spreads: list[Tensor] = []

        def recording_positive(x: Tensor, sigma: Tensor) -> Prediction:
            pos = positive(x, sigma)
            spreads.append(_spread(pos.clean))
            return pos

        guided = super().combine(recording_positive, negatives, x, sigma, trajectory)
        if not spreads:
            return guided
        spread = _spread(guided.clean)
        ratio = torch.where(spread > 0, spreads[0] / spread.clamp(min=TINY), 1.0)
        factor = 1 + self.phi * (ratio - 1)
        return replace(guided, clean=(guided.clean * factor).to(guided.clean))


def _spread(clean: Tensor) -> Tensor:
    """Return the standard deviation of each sample up to a constant, float64, `(B, 1, ..., 1)`."""
    wide = clean.double()
    return row_norm(wide - wide.mean(dim=list(range(1, clean.ndim)), keepdim=True))
