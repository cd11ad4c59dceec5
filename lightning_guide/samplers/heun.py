"""Heun's method with optional churn. Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithms 1 and 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.noise import Grid
from lightning_guide.samplers.base import Memory, PredictAt, Sampler, is_endless

__all__ = ["Heun"]


class Heun(Sampler):
    """Heun sampler of EDM, second order: Euler predictor, trapezoidal corrector, last step Euler. 2 N - 1 evaluations.

    A step from above sigma = 200 and 20 sigma' is Euler's, too (the first one of rectified flow, zero terminal SNR).

    x' = clean + sigma noise + (sigma' - sigma) (noise + noise') / 2, where noise' is predicted at clean + sigma' noise.
    The first two terms equal x unless a guidance returns a separate noise direction.

    With `s_churn` > 0 each step at a level in [`s_min`, `s_max`] first raises the noise from sigma to
    sigma (1 + gamma), gamma = min(s_churn / N, sqrt(2) - 1), with fresh noise of standard deviation `s_noise`.

    Examples:
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.seeds import SampleSeeds
        >>> x = torch.tensor([[81.0]], dtype=torch.float64)  # at sigma = 80; the exact solution ends at 1.5
        >>> *_, end = Heun(16).steps(gaussian([1.0], [[0.25]]), x, seeds=SampleSeeds(0, [0]))
        >>> round(float(end.x), 3), end.evaluations
        (1.536, 31)
    """

    def __init__(
        self,
        grid: Grid | int | None = None,
        *,
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
    ) -> None:
        """Set the `grid` as in `Sampler`, and the churn parameters as in EDM's algorithm 2.

        Raises:
            ValueError: if `s_churn` is negative, `s_noise` not positive, or `s_min` above `s_max`.
        """
        super().__init__(grid)
        if s_churn < 0 or s_noise <= 0 or s_min > s_max:
            raise ValueError(
                f"Heun needs s_churn >= 0, s_noise > 0 and s_min <= s_max, got {s_churn}, {s_noise}, {s_min}, {s_max}"
            )
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        if self.s_churn > 0 and self.s_min <= trajectory.sigma <= self.s_max:
            sigma = self._churn(trajectory, sigma)
        prediction = predict(trajectory.x, sigma)
        if trajectory.sigma_next == 0 or is_endless(trajectory):
            trajectory.x = prediction.step(trajectory.x, sigma, sigma_next)
            return
        # half a step with the first noise; the rest is deferred to the corrector to free the previous state
        middle = prediction.step(trajectory.x, sigma, (sigma + sigma_next) / 2)
        trajectory.x = prediction.step(trajectory.x, sigma, sigma_next)
        trajectory.stage = "corrector"
        del prediction
        noise = predict(trajectory.x, sigma_next).direction(trajectory.x, sigma_next)
        trajectory.x = middle.addcmul_(noise, (sigma_next - sigma) / 2)

    def _churn(self, trajectory: Trajectory, sigma: Tensor) -> Tensor:
        gamma = min(self.s_churn / trajectory.steps, math.sqrt(2) - 1)
        fresh = trajectory.seeds.normal("churn", trajectory.x.shape[1:], trajectory.x.device).to(trajectory.x)
        spread = trajectory.sigma * math.sqrt(gamma * (2 + gamma))
        trajectory.x = torch.add(trajectory.x, fresh, alpha=spread * self.s_noise)
        trajectory.sigma *= 1 + gamma
        return sigma * (1 + gamma)
