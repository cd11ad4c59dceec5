"""DPM-Solver++(2M). Lu et al. 2022, https://arxiv.org/abs/2211.01095."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.samplers.base import Memory, PredictAt, Sampler

__all__ = ["DPMSolver2M"]


class DPMSolver2M(Sampler):
    r"""DPM-Solver++(2M) sampler: second-order multistep in the log-SNR, N evaluations.

    With h = ln(sigma / sigma'), r = h_before / h and D the clean estimate: x' = D + e^-h sigma noise
    + (1 - e^-h) (D - D_before) / (2 r); the first and the last step are first order. D_before is the clean estimate
    implied by the *noise* of the step before, x - sigma noise; it equals `clean` unless a guidance returns a separate
    noise direction.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.seeds import SampleSeeds
        >>> x = torch.tensor([[81.0]], dtype=torch.float64)  # at sigma = 80; the exact solution ends at 1.5
        >>> *_, end = DPMSolver2M(32).steps(gaussian([1.0], [[0.25]]), x, seeds=SampleSeeds(0, [0]))
        >>> round(float(end.x), 3), end.evaluations
        (1.508, 32)
    """

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        prediction = predict(trajectory.x, sigma)
        clean, implied = prediction.clean, prediction.implied_clean(trajectory.x, sigma)
        trajectory.x = prediction.step(trajectory.x, sigma, sigma_next)
        if trajectory.sigma_next > 0:
            h = math.log(trajectory.sigma / trajectory.sigma_next)
            if memory:
                factor = -math.expm1(-h) * h / (2 * float(memory["h"]))
                trajectory.x.add_(clean - memory["implied"], alpha=factor)
            memory.update(h=h, implied=implied)
