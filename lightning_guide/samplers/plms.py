"""Pseudo linear multistep sampling (PLMS). Liu et al. 2022 (PNDM), https://arxiv.org/abs/2202.09778, equation 12."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.samplers.base import Memory, PredictAt, Sampler, is_endless

__all__ = ["PLMS"]

# Adams-Bashforth weights of the newest and the earlier noises, by the number of noises
WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class PLMS(Sampler):
    """PLMS sampler: x' = clean + sigma noise + (sigma' - sigma) e, with e a combination of the last 4 noises.

    The weights are those of equal distances, 55/24, -59/24, 37/24 and -9/24 (fewer at the start), as the paper has it
    for equal steps in time. The first step is a trapezoid; before it a step from above sigma = 200 and 20 sigma' is
    Euler's (`Heun`). N + 1 evaluations. PNDM without its Runge-Kutta start, the default of Stable Diffusion 1.

    Examples:
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.noise import LogUniformGrid
        >>> from lightning_guide.seeds import SampleSeeds
        >>> x = torch.tensor([[11.0]], dtype=torch.float64)  # at sigma = 10; the exact solution ends at 1.5
        >>> sampler = PLMS(LogUniformGrid(64, sigma_min=0.01, sigma_max=10.0))
        >>> *_, end = sampler.steps(gaussian([1.0], [[0.25]]), x, seeds=SampleSeeds(0, [0]))
        >>> round(float(end.x), 2), end.evaluations
        (1.5, 65)
    """

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`."""
        x = trajectory.x
        prediction = predict(x, sigma)
        if is_endless(trajectory):
            trajectory.x = prediction.step(x, sigma, sigma_next)
            return
        noise = prediction.direction(x, sigma)
        if not memory:
            memory["count"] = 1.0
            memory["noise 0"] = noise
            if trajectory.sigma_next > 0:
                trajectory.stage = "corrector"
                end = prediction.step(x, sigma, sigma_next)
                noise = (noise + predict(end, sigma_next).direction(end, sigma_next)) / 2
        else:
            count = min(int(memory["count"]) + 1, len(WEIGHTS))
            earlier = [torch.as_tensor(memory[f"noise {i}"]) for i in range(count - 1)]
            memory["count"] = float(count)
            for i, each in enumerate([noise, *earlier]):
                memory[f"noise {i}"] = each
            noise = torch.stack([w * e for w, e in zip(WEIGHTS[count - 1], [noise, *earlier], strict=True)]).sum(0)
        here = prediction.step(x, sigma, sigma)  # x, unless a guidance returns a separate noise direction
        trajectory.x = torch.addcmul(here, noise, sigma_next - sigma)
