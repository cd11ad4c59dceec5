"""Base of ODE and SDE samplers of dx/dsigma = (x - D(x, sigma)) / sigma, in the variance-exploding form.

Each sampler combines the *clean* estimate of a prediction with its *noise* direction, so that guidances which return a
separate noise direction work with all of them.

Memory: besides the memory of the network, at most 3 copies of x and one for each negative; `UniPC` and `DEIS` keep
`order` + 2 more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_guide.conditioning import condition_on
from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.noise import Grid
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.recipe import HasRecipe
from lightning_guide.utils.scalars import check_whole

__all__ = ["Memory", "PredictAt", "Sampler", "history", "is_endless", "remember"]


PredictAt = Callable[[Tensor, Tensor], Prediction]

# state of a sampler between the steps of one trajectory
Memory = dict[str, Tensor | float]


class Sampler(HasRecipe, ABC):
    """Base of all samplers. Holds no state between trajectories.

    Attributes:
        single: whether each step goes along the noise of one prediction, x' = clean + sigma' noise, as that of `Euler`.
        selects: whether `sample` chooses among samples, which the steps alone do not.
    """

    single: bool = False
    selects: bool = False

    def __init__(self, grid: Grid | int | None = None) -> None:
        """Set the `grid` of noise levels; a number of steps (default 32) means the default grid of the denoiser."""
        if not isinstance(grid, Grid):
            name = f"the number of steps of {type(self).__name__}"
            grid = check_whole(32 if grid is None else grid, name, least=1)
        self.grid: Grid | int = grid

    def moves(self, sampler: Sampler) -> Sampler:
        """Return the `sampler` whose steps this one takes.

        Raises:
            ValueError: if it is none, or its steps alone lose what it selects.
        """
        name, found = type(self).__name__, sampler.__class__.__name__
        if not isinstance(sampler, Sampler):
            raise ValueError(f"{name} needs a sampler whose steps it takes, such as Heun(16), got {sampler!r}")
        if sampler.selects:
            raise ValueError(f"{name} takes the steps of its sampler, which lose what {found} selects; put it outside")
        return sampler

    def levels(self, denoiser: Denoiser) -> Tensor:
        """Return the noise levels sigma_0 > ... > sigma_N = 0 for `denoiser`, float64 (N + 1,) on the CPU.

        Raises:
            ValueError: if the first one is above those that the denoiser was trained for.
        """
        grid = self.grid if isinstance(self.grid, Grid) else denoiser.grid(self.grid)
        levels = grid.sigmas()
        if levels[0] > denoiser.sigma_max * (1 + 1e-6):
            raise ValueError(
                f"the grid starts at sigma = {levels[0]:g}, but the model was trained for noise levels up to "
                f"{denoiser.sigma_max:g}; give the sampler a number of steps for the model's own grid"
            )
        return levels

    def initial(self, denoiser: Denoiser, seeds: SampleSeeds, device: torch.device | str = "cpu") -> Tensor:
        """Return noise at the first level, sigma_0 z with z standard normal, `(B, *data_shape)`."""
        return float(self.levels(denoiser)[0]) * seeds.normal("initial", denoiser.data_shape, device)

    def steps(
        self, denoiser: Denoiser, x: Tensor, *, seeds: SampleSeeds, condition: Tensor | None = None
    ) -> Iterator[Trajectory]:
        """Integrate from `x` (B, *) at sigma_0 to 0 and yield the trajectory after each step.

        The same object is updated and yielded each time; `trajectory.x` is the state at `trajectory.sigma_next`. A
        `condition` on the host is checked there before the first step, and moved to `x`.

        Raises:
            ValueError: if `x` or `condition` does not have one row for each seed, or a label is out of range.
        """
        if len(x) != len(seeds):
            raise ValueError(f"x has {len(x)} rows for {len(seeds)} sample seeds")
        if condition is not None and len(condition) != len(seeds):
            raise ValueError(f"the condition has {len(condition)} rows for {len(seeds)} sample seeds")
        levels = self.levels(denoiser)
        condition = condition_on(x.device, condition, denoiser)
        sigmas = to_device(levels.to(x.dtype), x.device)
        trajectory = Trajectory(x=x, seeds=seeds, sigma=float(levels[0]), steps=len(levels) - 1)
        trajectory.levels, trajectory.single = tuple(levels.tolist()), self.single
        del x
        # no_grad as a decorator would keep a reference to x
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
        """Draw the samples of new `seeds`; return the final trajectory with `x` (B, *data_shape) and `evaluations`.

        `start` maps the initial noise to the first state; default: the noise itself.
        """
        x = [self.initial(denoiser, seeds, device)]  # popped below, so that no reference keeps it alive
        if start is not None:
            x.append(start(x.pop()))
        *_, trajectory = self.steps(denoiser, x.pop(), seeds=seeds, condition=condition)
        return trajectory

    @abstractmethod
    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Update `trajectory.x` from `sigma` to `sigma_next`; to be implemented by subclasses.

        `memory` is kept for the whole trajectory. A step may be repeated with the earlier `memory` (see `TimeTravel`).
        """


# A step is Euler's if its level is above HIGHEST and more than LONGEST times the next one. The noises at its ends
# differ by about 1 / sigma'^2, which a trapezoid multiplies by sigma / 2: it diverges as sigma goes to infinity.
HIGHEST, LONGEST = 200.0, 20.0


def is_endless(trajectory: Trajectory) -> bool:
    """Return whether the current step is too long for a combination of noises: that from t = 1 in rectified flow."""
    return trajectory.sigma > max(HIGHEST, LONGEST * trajectory.sigma_next)


def history(memory: Memory, name: str) -> tuple[list[float], list[Tensor]]:
    """Return the times and the tensors that `remember` has kept under `name`, newest first."""
    count = sum(key.startswith(f"{name} ") for key in memory)
    times = [float(memory[f"time {i}"]) for i in range(count)]
    return times, [torch.as_tensor(memory[f"{name} {i}"]) for i in range(count)]


def remember(memory: Memory, name: str, time: float, tensor: Tensor, *, kept: int) -> None:
    """Keep `tensor` under `name` as the newest of at most `kept`, with its `time`."""
    times, tensors = history(memory, name)
    for i, (t, each) in enumerate(zip([time, *times][:kept], [tensor, *tensors][:kept], strict=True)):
        memory.update({f"time {i}": t, f"{name} {i}": each})
