"""Decoupled annealing posterior sampling (DAPS). Zhang et al. 2024, https://arxiv.org/abs/2407.01521.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance.posterior.base import PosteriorSteps
from lightning_guide.guidance.posterior.pigdm import isotropic_variance
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt
from lightning_guide.utils.scalars import check_whole

__all__ = ["DAPS"]


class DAPS(PosteriorSteps):
    """Decoupled annealing posterior sampling: x_0 by the ODE from x, then drawn given y, then all noise anew.

    m is the end of `steps` Euler steps of the probability-flow ODE from (x, sigma) to 0, x_0 is drawn from the
    posterior of the prior N(m, r^2 I) given y, and x' = x_0 + sigma' n. The paper draws x_0 by Langevin steps and has
    r = sigma; for a linear A the draw is exact here, and with that r its noise would add to that of the step:
    r^2 = sigma^2 s^2 / (sigma^2 + s^2), as in `PiGDM`. With one step m = D, and samples of data N(m, s^2 I) are exact;
    with more, as in the paper, m is itself a sample of the data, and what is drawn around it is too wide.
    By `Euler`; `steps` network calls, no gradient.
    """

    def __init__(
        self,
        measurement: Measurement,
        *,
        steps: int = 1,
        data_std: float | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """Guide by `measurement`.

        Args:
            measurement: y, A and sigma_y.
            steps: of the ODE, at the levels sigma (1 - i / steps)^7.
            data_std: s, by default sigma_data of `positive`.
            positive: the denoiser to guide; default: the model under evaluation.

        Raises:
            ValueError: unless `steps` >= 1 and `data_std` > 0.
        """
        super().__init__(measurement, positive=positive)
        if data_std is not None and not 0 < data_std < math.inf:
            raise ValueError(f"DAPS needs a finite data_std > 0, got {data_std}")
        self.steps, self.data_std = check_whole(steps, "steps of DAPS", least=1), data_std

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction that leads to x'."""
        mean = x
        for i in range(self.steps):
            level, after = (sigma * (1 - j / self.steps) ** 7 for j in (i, i + 1))
            mean = predict(mean, level).step(mean, level, after)
        variance = isotropic_variance(sigma, self.data_std or self.positive.sigma_data)
        n = trajectory.seeds.normal("posterior", x.shape[1:], x.device).to(x)
        prior = mean + variance.sqrt() * n
        # a draw of the prior, corrected by the difference to a measurement of it: a draw of the posterior
        e = trajectory.seeds.normal("posterior measurement", problem.observed.shape[1:], x.device).to(x)
        residual = problem.residual(prior) + problem.noise * problem.spectrum.measured(e)
        clean = prior + variance * problem.adjoint(problem.solve(residual, variance))
        n = trajectory.seeds.normal("posterior", x.shape[1:], x.device).to(x)
        return self.arrive(clean + trajectory.sigma_next * n, clean, trajectory)
