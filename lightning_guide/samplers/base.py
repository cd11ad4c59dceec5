"""The base of samplers: from noise to samples along the ODE dx/dsigma = (x - D(x, sigma)) / sigma, and beside it.

All are written in the variance-exploding form. A sampler starts from the *clean* estimate of a prediction and adds
*noise* along its noise direction, so guidances that tell the two apart work in all.

Memory: besides what the network holds while it runs and returns, no more than 3 copies of x and one for each negative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Memory", "PredictAt", "Sampler"]


PredictAt = Callable[[Tensor, Tensor], Prediction]


Memory = dict[str, Tensor | float]


class Sampler(HasRecipe, ABC):
    """Base of all samplers. Holds no state between trajectories."""

    def __init__(self, grid: Grid | int | None = None) -> None:
        """`grid` of noise levels, or the number of steps of EDM's grid from 80 to 0.002 (`KarrasGrid`), 32 by default."""
        self.grid = grid if isinstance(grid, Grid) else KarrasGrid(32 if grid is None else grid)

    def initial(self, denoiser: Denoiser, seeds: SampleSeeds, device: torch.device | str = "cpu") -> Tensor:
        """Noise at the first level, sigma_0 z with z standard normal, `(B, *data_shape)`."""
        return float(self.grid.sigmas()[0]) * seeds.normal("initial", denoiser.data_shape, device)

    def steps(
        self, denoiser: Denoiser, x: Tensor, *, seeds: SampleSeeds, condition: Tensor | None = None
    ) -> Iterator[Trajectory]:
        """Walks from `x` (B, *) at sigma_0 to 0 and yields the trajectory after each step.

        It is one object that moves on; `trajectory.x` is the state, `trajectory.sigma_next` its noise level.

        Raises:
            ValueError: if `x` or `condition` does not have one row for each seed.
        """
        if len(x) != len(seeds):
            raise ValueError(f"x has {len(x)} rows for {len(seeds)} sample seeds")
        if condition is not None and len(condition) != len(seeds):
            raise ValueError(f"the condition has {len(condition)} rows for {len(seeds)} sample seeds")
        levels = self.grid.sigmas()
        sigmas = levels.to(x)
        trajectory = Trajectory(x=x, seeds=seeds, sigma=float(levels[0]), steps=len(levels) - 1)
        trajectory.levels = tuple(levels.tolist())
        del x
        # no_grad as a decorator would hold on to its argument x
        with torch.no_grad():
            predict = denoiser.start(trajectory)
        memory: Memory = {}
        for i in range(len(levels) - 1):
            trajectory.sigma, trajectory.sigma_next = float(levels[i]), float(levels[i + 1])
            trajectory.step, trajectory.stage = i, "predictor"
            with torch.no_grad():
                self.step(trajectory, lambda x, sigma: predict(x, sigma, condition), sigmas[i], sigmas[i + 1], memory)
            yield trajectory

    def sample(
        self,
        denoiser: Denoiser,
        *,
        seeds: SampleSeeds,
        condition: Tensor | None = None,
        device: torch.device | str = "cpu",
        start: Callable[[Tensor], Tensor] | None = None,
    ) -> Trajectory:
        """Draws the samples of fresh `seeds`: the finished trajectory with `x` (B, *data_shape) and `evaluations`.

        `start` makes the first state of the initial noise; default: the noise itself.
        """
        x = [self.initial(denoiser, seeds, device)]  # handed over, not kept
        if start is not None:
            x.append(start(x.pop()))
        *_, trajectory = self.steps(denoiser, x.pop(), seeds=seeds, condition=condition)
        return trajectory

    @abstractmethod
    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Moves `trajectory.x` from `sigma` to `sigma_next`; `memory` lives as long as the trajectory.

        The part that subclasses write. `memory` may be handed over again as it was before (see `TimeTravel`).
        """
