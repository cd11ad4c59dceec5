"""Inpainting by known pixels with noise (RePaint). Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorGuidance
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["RePaint"]


class RePaint(PosteriorGuidance):
    """RePaint: what was measured is replaced in x by itself with noise sigma, before each prediction.

    For a mask: x <- m (y + sigma n) + (1 - m) x. For any linear A: z <- U^T y / s + sqrt(sigma^2 - l^2) n in the
    coordinates of its singular values s, while the noise of the measurement, l = sigma_y / s, is at most sigma. The
    last estimate gets what was measured without noise. The paper's sampler is `TimeTravel(DDIM(grid), repeats)` with
    10 repeats; it goes back by 10 steps at once, `TimeTravel` by one. One network call, no gradient.
    """

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction at the x with its measured part replaced."""
        n = trajectory.seeds.normal("posterior", x.shape[1:], x.device).to(x)
        x = _replaced(x, sigma, n, problem)
        prediction = predict(x, sigma)
        noise = prediction.direction(x, sigma)  # of the new x: the sampler has the old one
        if trajectory.sigma_next == 0:
            return replace(prediction, clean=_replaced(prediction.clean, torch.zeros_like(sigma), n, problem))
        return replace(prediction, noise=noise)


def _replaced(x: Tensor, sigma: Tensor, n: Tensor, problem: LinearProblem) -> Tensor:
    """Return `x` (B, *) whose measured coordinates have noise `sigma`, where that of the measurement is not larger."""
    spectrum, level = problem.spectrum, problem.noise * problem.inverse
    added = (sigma**2 - level**2).clamp(min=0).sqrt() * spectrum.coordinates(n)
    change = problem.inverse * problem.residual(x) + added
    return x + spectrum.image(change.where((problem.values > 0) & (level <= sigma), 0))
