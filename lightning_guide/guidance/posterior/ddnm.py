"""Denoising diffusion null-space model (DDNM and DDNM+). Wang et al. 2023, https://arxiv.org/abs/2212.00490.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorSteps
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["DDNM"]


class DDNM(PosteriorSteps):
    """Denoising diffusion null-space model: D + A^+ (y - A D), then a step of DDPM; DDNM+ where there is noise.

    x' = D_y + q (x - D_y) + s n with q = (sigma' / sigma)^2 and s = sigma' sqrt(1 - q). In the coordinate of the
    singular value s_i the measurement has noise l_i = sigma_y / s_i, of which (1 - q) lambda_i l_i arrives in x': the
    correction is scaled by lambda_i = min(1, s / ((1 - q) l_i)) and the fresh noise has the variance that is left,
    s^2 - ((1 - q) lambda_i l_i)^2. Without noise A x = y in the end. By `Euler`; one network call, no gradient.
    """

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction that leads to x'."""
        q = (trajectory.sigma_next / trajectory.sigma) ** 2
        s = trajectory.sigma_next * (1 - q) ** 0.5
        spectrum, clean = problem.spectrum, predict(x, sigma).clean
        arriving_noise = (1 - q) * problem.noise * problem.inverse
        scale = (s / arriving_noise).where(arriving_noise > s, 1)
        clean = clean + spectrum.image(scale * problem.inverse * problem.residual(clean))
        n = trajectory.seeds.normal("posterior", x.shape[1:], x.device).to(x)
        fresh = (s**2 - (scale * arriving_noise) ** 2).clamp(min=0).sqrt()
        step = q * (x - clean) + s * n + spectrum.image((fresh - s) * spectrum.coordinates(n))
        return self.arrive(clean + step, clean, trajectory)
