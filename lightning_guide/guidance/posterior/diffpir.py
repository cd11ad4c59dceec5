"""Plug-and-play image restoration by diffusion (DiffPIR). Zhu et al. 2023, https://arxiv.org/abs/2305.08995.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorSteps
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["DiffPIR"]


class DiffPIR(PosteriorSteps):
    """Plug-and-play restoration: D_y = argmin_x |y - A x|^2 / (2 sigma_y^2) + lambda |x - D|^2 / (2 sigma^2), renoised.

    D_y = D + v A^T (v A A^T + sigma_y^2 I)^-1 (y - A D) with v = sigma^2 / lambda, and
    x' = D_y + sigma' (sqrt(1 - zeta) (x - D_y) / sigma + sqrt(zeta) n). By `Euler`; one network call, no gradient.
    """

    def __init__(
        self, measurement: Measurement, *, weight: float = 1.0, zeta: float = 1.0, positive: Denoiser | None = None
    ) -> None:
        """Guide by `measurement`.

        Args:
            measurement: y, A and sigma_y.
            weight: lambda, of the distance to D.
            zeta: share of the noise that is fresh, in [0, 1].
            positive: the denoiser to guide; default: the model under evaluation.

        Raises:
            ValueError: unless `weight` > 0 and 0 <= `zeta` <= 1.
        """
        super().__init__(measurement, positive=positive)
        if not (0 < weight < math.inf and 0 <= zeta <= 1):
            raise ValueError(f"DiffPIR needs a finite weight > 0 and zeta in [0, 1], got {weight} and {zeta}")
        self.weight, self.zeta = weight, zeta

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction that leads to x'."""
        clean, variance = predict(x, sigma).clean, sigma**2 / self.weight
        clean = clean + variance * problem.adjoint(problem.solve(problem.residual(clean), variance))
        n = trajectory.seeds.normal("posterior", x.shape[1:], x.device).to(x)
        noise = (1 - self.zeta) ** 0.5 * (x - clean) / sigma + self.zeta**0.5 * n
        return self.arrive(clean + trajectory.sigma_next * noise, clean, trajectory)
