"""SDE-DPM-Solver++(2M). Lu et al. 2022, https://arxiv.org/abs/2211.01095, appendix on SDEs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.samplers.base import Memory, PredictAt, Sampler
from lightning_guide.samplers.brownian import BrownianPath

__all__ = ["SDEDPMSolver2M"]


class SDEDPMSolver2M(Sampler):
    """SDE-DPM-Solver++(2M) sampler of the reverse SDE of DDPM: second-order multistep in the drift, N evaluations.

    With q = (sigma' / sigma)^2, h = ln(sigma / sigma'), r = h_before / h and D the clean estimate: x' = D + q sigma
    noise + (1 - q) (D - D_before) / (2 r) + sigma'^2 (B(1 / sigma'^2) - B(1 / sigma^2)); the first step of a path and
    the last one are first order. The fresh noise has standard deviation sigma' sqrt(1 - q) and is an increment of one
    Brownian path per sample (`BrownianPath`): other numbers of steps give approximations of the same sample, which
    converge. Where `TimeTravel` or `Restart` go back to a higher level, the samples begin another path. Without the
    second-order term this is `DDIM` with eta = 1. A separate noise direction moves x as in `DPMSolver2M`.

    Examples:
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.seeds import SampleSeeds
        >>> exact = gaussian([1.0], [[0.25]])
        >>> few, many = (SDEDPMSolver2M(n).sample(exact, seeds=SampleSeeds(0, range(200))).x for n in (64, 128))
        >>> float((few - many).std()) < 0.05 < float(many.std())  # one path
        True
    """

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        prediction = predict(trajectory.x, sigma)
        clean, implied = prediction.clean, prediction.implied_clean(trajectory.x, sigma)
        x = prediction.step(trajectory.x, sigma, sigma_next**2 / sigma)
        if trajectory.sigma_next > 0:
            h = math.log(trajectory.sigma / trajectory.sigma_next)
            number = trajectory.renoised
            path = BrownianPath(trajectory.seeds, x.shape[1:], x.device, number=number)
            same = memory.get("path") == number
            if same:
                x.add_(clean - memory["implied"], alpha=-math.expm1(-2 * h) * h / (2 * float(memory["h"])))
            start = torch.as_tensor(memory["inside"]) if same else path.inside(trajectory.sigma)
            end = path.inside(trajectory.sigma_next)
            fresh = end - start + path.octaves(trajectory.sigma, trajectory.sigma_next)
            x.add_(fresh.to(x), alpha=trajectory.sigma_next**2)
            memory.update(h=h, implied=implied, inside=end, path=number)
        trajectory.x = x
