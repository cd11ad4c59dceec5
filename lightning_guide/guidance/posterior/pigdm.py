"""Pseudoinverse-guided diffusion (PiGDM). Song et al. 2023, https://openreview.net/forum?id=9_gsMA8MRKQ.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorGuidance, differentiated, moved
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt

__all__ = ["PiGDM", "isotropic_variance"]


def isotropic_variance(sigma: Tensor, data_std: float) -> Tensor:
    """Return r^2 = sigma^2 s^2 / (sigma^2 + s^2), the variance of x_0 given x for data N(m, s^2 I); `data_std` is s."""
    return sigma**2 * data_std**2 / (sigma**2 + data_std**2)


class PiGDM(PosteriorGuidance):
    """Pseudoinverse-guided diffusion: D + sigma^2 J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A D), J = dD/dx.

    The gradient of ln N(y; A D, r^2 A A^T + sigma_y^2 I) by x, with x_0 given x taken for N(D, r^2 I),
    r^2 = sigma^2 s^2 / (sigma^2 + s^2); s = 1 in the paper. Exact for data N(m, s^2 I) with this s. The paper's sampler
    weighs the gradient by a factor of its own; here it is that of the posterior score. One network call and one
    backward pass.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions import gaussian
        >>> from lightning_guide.objectives import Matrix, Measurement
        >>> seen = Measurement(Matrix([[1.0, 0.0]]), observed=[[1.0]], noise=0.0)
        >>> guided = PiGDM(seen, data_std=1.0, positive=gaussian([0.0, 0.0], 1.0))
        >>> guided(torch.tensor([[0.0, 2.0]]), torch.tensor(1.0))  # the first number is known
        tensor([[1., 1.]])
    """

    def __init__(
        self, measurement: Measurement, *, data_std: float | None = None, positive: Denoiser | None = None
    ) -> None:
        """Guide by `measurement`; `data_std` is s, by default sigma_data of `positive`.

        Raises:
            ValueError: unless `data_std` is positive.
        """
        super().__init__(measurement, positive=positive)
        if data_std is not None and not 0 < data_std < math.inf:
            raise ValueError(f"PiGDM needs a finite data_std > 0, got {data_std}")
        self.data_std = data_std

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction of the posterior mean."""
        prediction, product = differentiated(predict, x, sigma)
        variance = isotropic_variance(sigma, self.data_std or self.positive.sigma_data)
        residual = problem.residual(prediction.clean.detach())
        return moved(prediction, sigma**2 * product(problem.adjoint(problem.solve(residual, variance))), sigma)
