"""Moment matching posterior sampling (MMPS). Rozet et al. 2024, https://arxiv.org/abs/2405.13712.

Equations as we know them; the paper was not read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory, expand
from lightning_guide.guidance.posterior.base import PosteriorGuidance, differentiated, moved
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.spectrum import LinearProblem
from lightning_guide.samplers.base import PredictAt
from lightning_guide.utils.scalars import check_whole

__all__ = ["MMPS", "conjugate_gradients"]


class MMPS(PosteriorGuidance):
    """Moment matching posterior sampling: D + C A^T (A C A^T + sigma_y^2 I)^-1 (y - A D) with C = sigma^2 dD/dx.

    C is the covariance of x_0 given x by Tweedie's formula, applied by backward passes and never stored; the system is
    solved by `iterations` of conjugate gradients. Exact for Gaussian data, once the iterations are as many as different
    eigenvalues. One network call, and one backward pass for each iteration and one more.
    """

    def __init__(self, measurement: Measurement, *, iterations: int = 3, positive: Denoiser | None = None) -> None:
        """Guide by `measurement` with `iterations` of conjugate gradients.

        Raises:
            ValueError: if there is no iteration.
        """
        super().__init__(measurement, positive=positive)
        self.iterations = check_whole(iterations, "iterations of MMPS", least=1)

    def predict_given(
        self, predict: PredictAt, x: Tensor, sigma: Tensor, problem: LinearProblem, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction of the posterior mean."""
        prediction, product = differentiated(predict, x, sigma)
        spectrum = problem.spectrum

        def covariance(r: Tensor) -> Tensor:
            return sigma**2 * product(problem.adjoint(r))

        def system(r: Tensor) -> Tensor:
            return problem.values * spectrum.coordinates(covariance(r)) + problem.noise**2 * r

        residual = problem.residual(prediction.clean.detach()).where(problem.values > 0, 0)
        solution = conjugate_gradients(system, residual, self.iterations, least=problem.noise**2)
        return moved(prediction, covariance(solution), sigma)


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], b: Tensor, iterations: int, *, least: float = 0.0
) -> Tensor:
    """Return u (B, *) with M u = `b` (B, *) after `iterations`; `system` is u -> M u, symmetric, for each row.

    The eigenvalues of M should be at least `least`. A row that is solved, or whose M is smaller along its direction, as
    the Jacobian of a network may be, stays as it is: nothing waits for it.
    """
    u, r, p = torch.zeros_like(b), b, b
    square = _inner(r, r)
    for _ in range(iterations):
        Mp = system(p)
        curvature = _inner(p, Mp)
        # half of it, since sums are rounded
        usable = (curvature > 0) & (curvature >= 0.5 * least * _inner(p, p))
        step = expand((square / curvature).where(usable, 0), b)
        u, r = u + step * p, r - step * Mp
        before, square = square, _inner(r, r)
        p = r + expand((square / before).where(before > 0, 0), b) * p
    return u


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
