"""Tweedie moment projected diffusions (TMPD). Boys et al. 2023, https://arxiv.org/abs/2310.06721.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorGuidance, differentiated, moved
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["TMPD"]


class TMPD(PosteriorGuidance):
    """Tweedie moment projected diffusions: D + C A^T (y - A D) / (c + sigma_y^2) with C = sigma^2 dD/dx.

    c = A C A^T 1, the row sums of the covariance of A x_0 given x, in place of the matrix, and at least 0: exact for
    Gaussian data whose measured numbers are independent of each other. Meant for masks, averages and blur: row sums
    near zero, as random projections may have, let samples diverge. One network call and two backward passes.
    """

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction of the posterior mean."""
        prediction, product = differentiated(predict, x, sigma)

        def covariance(r: Tensor) -> Tensor:
            return sigma**2 * product(problem.adjoint(problem.spectrum.measured(r)))

        sums = problem.operator(covariance(torch.ones_like(problem.observed))).clamp(min=0) + problem.noise**2
        residual = problem.observed - problem.operator(prediction.clean.detach())
        return moved(prediction, covariance((residual / sums).where(sums > 0, 0)), sigma)
