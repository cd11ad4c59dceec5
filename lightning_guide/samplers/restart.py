"""Restart sampling. Xu et al. 2023, https://arxiv.org/abs/2306.14878, algorithm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers.base import Memory, PredictAt, Sampler
from lightning_guide.utils.devices import to_device

__all__ = ["Restart"]


class Restart(Sampler):
    """Restart sampler: at the end of an interval of noise levels go back to its start, `repeats` times.

    When the walk of `sampler` reaches the first level sigma' at or below `low`, noise is added,
    x <- x + sqrt(high^2 - sigma'^2) n, and the sampler walks from `high` to sigma' again, in `num_steps` steps of
    Karras' grid. A deterministic sampler thereby forgets its errors above `high` as a stochastic one does. The paper
    has several intervals, which are nested samplers here. Evaluations are those of all steps.

    Examples:
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> from lightning_guide.samplers import Heun
        >>> from lightning_guide.seeds import SampleSeeds
        >>> sampler = Restart(Heun(16), low=0.1, high=1.0, repeats=2, num_steps=4)
        >>> sampler.sample(gaussian([1.0], [[0.25]]), seeds=SampleSeeds(0, range(4))).evaluations  # 31 + 2 * 8
        47
    """

    def __init__(
        self, sampler: Sampler, *, low: float = 0.05, high: float = 0.3, repeats: int = 1, num_steps: int = 4
    ) -> None:
        """Restart between `low` and `high`; the grid is that of `sampler`.

        Raises:
            ValueError: if not 0 < `low` < `high`, or `repeats` or `num_steps` is less than 1.
        """
        super().__init__(self.moves(sampler).grid)
        self.single = sampler.single
        if not 0 < low < high or repeats < 1 or num_steps < 1:
            raise ValueError(
                f"Restart needs 0 < low < high, repeats >= 1 and num_steps >= 1, got {low}, {high}, {repeats} and "
                f"{num_steps}"
            )
        self.sampler, self.low, self.high, self.repeats, self.num_steps = sampler, low, high, repeats, num_steps

    def levels(self, denoiser: Denoiser) -> Tensor:
        """Return those of the sampler.

        Raises:
            ValueError: if `high` is above those that the denoiser was trained for, or no step leaves the interval.
        """
        levels = self.sampler.levels(denoiser)
        if self.high > denoiser.sigma_max * (1 + 1e-6):
            raise ValueError(
                f"Restart goes back to sigma = {self.high:g}, but the model was trained for noise levels up to "
                f"{denoiser.sigma_max:g}"
            )
        inner = levels[:-1]
        if not inner[-1] <= self.low < inner[0]:
            raise ValueError(
                f"Restart needs a step from above low = {self.low:g} to a level above 0, which ends the interval, "
                f"but the levels of its sampler are {inner[0]:g} to {inner[-1]:g}, then 0"
            )
        return levels

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take one step from `sigma` to `sigma_next`, and the restarts if it is the one that leaves the interval."""
        before, end = trajectory.sigma, trajectory.sigma_next
        self.sampler.step(trajectory, predict, sigma, sigma_next, memory)
        if not 0 < end <= self.low < before:
            return
        levels = KarrasGrid(self.num_steps + 1, sigma_min=end, sigma_max=self.high).sigmas()[:-1].tolist()
        sigmas = to_device(torch.tensor(levels, dtype=sigma.dtype), sigma.device)
        for _ in range(self.repeats):
            n = trajectory.seeds.normal("restart", trajectory.x.shape[1:], trajectory.x.device).to(trajectory.x)
            trajectory.x = torch.add(trajectory.x, n, alpha=(self.high**2 - end**2) ** 0.5)
            trajectory.renoised += 1
            memory.clear()
            for i in range(self.num_steps):
                trajectory.sigma, trajectory.sigma_next, trajectory.stage = levels[i], levels[i + 1], "predictor"
                self.sampler.step(trajectory, predict, sigmas[i], sigmas[i + 1], memory)
