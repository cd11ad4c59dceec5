"""Denoising diffusion restoration models (DDRM). Kawar et al. 2022, https://arxiv.org/abs/2201.11793.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorSteps
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["DDRM"]


class DDRM(PosteriorSteps):
    """Denoising diffusion restoration models: a step for each singular value of A, by the noise of its measurement.

    With z and d the coordinates of x and D, k = U^T y / s the measured ones with noise l = sigma_y / s, and n fresh:

        s = 0:       z' = d + sqrt(1 - eta^2) sigma' (z - d) / sigma + eta sigma' n
        l > sigma':  z' = d + sqrt(1 - eta^2) sigma' (k - d) / l + eta sigma' n
        l <= sigma': z' = (1 - eta_b) d + eta_b k + sqrt(sigma'^2 - eta_b^2 l^2) n

    The first state is that of the sampler, in the paper it holds the measurement. By `Euler`; one network call, no
    gradient.
    """

    def __init__(
        self, measurement: Measurement, *, eta: float = 0.85, eta_b: float = 1.0, positive: Denoiser | None = None
    ) -> None:
        """Guide by `measurement` with the published `eta` and `eta_b`.

        Raises:
            ValueError: unless both are in [0, 1].
        """
        super().__init__(measurement, positive=positive)
        if not (0 <= eta <= 1 and 0 <= eta_b <= 1):
            raise ValueError(f"DDRM needs eta and eta_b in [0, 1], got {eta} and {eta_b}")
        self.eta, self.eta_b = eta, eta_b

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction that leads to x'."""
        spectrum, sigma_next = problem.spectrum, trajectory.sigma_next
        clean = predict(x, sigma).clean
        n = trajectory.seeds.normal("posterior", x.shape[1:], x.device).to(x)
        kept, fresh = (1 - self.eta**2) ** 0.5 * sigma_next, self.eta * sigma_next
        x_next = clean + kept * (x - clean) / sigma + fresh * n
        gap = problem.inverse * problem.residual(clean)  # k - d
        level = problem.noise * problem.inverse
        noise = spectrum.coordinates(n)
        noisier = kept * gap / level + fresh * noise
        clearer = self.eta_b * gap + (sigma_next**2 - (self.eta_b * level) ** 2).clamp(min=0).sqrt() * noise
        change = noisier.where(level > sigma_next, clearer) - spectrum.coordinates(x_next - clean)
        return self.arrive(x_next + spectrum.image(change.where(problem.values > 0, 0)), clean, trajectory)
