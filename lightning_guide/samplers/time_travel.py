"""Time travel: steps are repeated, with fresh noise in between.

Also called resampling (Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865), self-recurrence (Bansal et al. 2023,
https://arxiv.org/abs/2302.07121, algorithm 1) and time travel (Yu et al. 2023, https://arxiv.org/abs/2303.09833).
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.samplers.base import Memory, PredictAt, Sampler

__all__ = ["TimeTravel"]


class TimeTravel(Sampler):
    """Time travel: take each step of `sampler` `repeats` times, with x <- x' + sqrt(sigma^2 - sigma'^2) n in between.

    Adding the noise restores the noise level sigma: if x' has the marginal of sigma', then x has that of sigma. In the
    variance-preserving form x_t = sqrt(alpha) x_{t-1} + sqrt(1 - alpha) n. A step costs `repeats` times as many
    evaluations, which are counted. No noise is added after the last repetition.
    """

    def __init__(self, sampler: Sampler, repeats: int = 4, *, low: float = 0.0, high: float = math.inf) -> None:
        """Repeat the steps that start at a noise level in (`low`, `high`]; the grid is that of `sampler`.

        Raises:
            ValueError: if `repeats` is less than 1 or the window is empty.
        """
        super().__init__(self.moves(sampler).grid)
        self.single = sampler.single
        if repeats < 1 or not 0 <= low < high:
            raise ValueError(f"TimeTravel needs repeats >= 1 and 0 <= low < high, got {repeats}, {low} and {high}")
        self.sampler, self.repeats, self.low, self.high = sampler, repeats, low, high

    def levels(self, denoiser: Denoiser) -> Tensor:
        """Return those of the sampler."""
        return self.sampler.levels(denoiser)

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take the step from `sigma` to `sigma_next` once or `repeats` times, each with the earlier `memory`."""
        level, before = trajectory.sigma, dict(memory)
        times = self.repeats if self.low < level <= self.high else 1
        for time in range(times):
            if time > 0:
                self._renoise(trajectory, (sigma**2 - sigma_next**2).sqrt())
                trajectory.sigma, trajectory.stage = level, "predictor"
                memory.clear()
                memory.update(before)
            self.sampler.step(trajectory, predict, sigma, sigma_next, memory)

    def _renoise(self, trajectory: Trajectory, spread: Tensor) -> None:
        n = trajectory.seeds.normal("time travel", trajectory.x.shape[1:], trajectory.x.device)
        trajectory.x = n.to(trajectory.x).mul_(spread).add_(trajectory.x)
        trajectory.renoised += 1
