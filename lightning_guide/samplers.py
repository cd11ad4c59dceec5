"""Samplers: from noise to samples along the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma.

Euler, Heun with optional churn (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithms 1 and 2) and
DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095) in the variance-exploding form. A sampler starts
from the *clean* estimate of a prediction and adds *noise* along its noise direction, so guidances that tell the two
apart work in all.

Memory: besides what the network holds while it runs and returns, no more than 3 copies of x and one for each negative.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.seeds import SampleSeeds

__all__ = ["DPMSolver2M", "Euler", "Heun", "Sampler"]


PredictAt = Callable[[Tensor, Tensor], Prediction]
Memory = dict[str, Tensor | float]


class Sampler(ABC):
    """Base of all samplers. Holds no state between trajectories."""

    def __init__(self, grid: Grid | None = None) -> None:
        """`grid` of noise levels; the default is EDM's with 32 steps from 80 to 0.002."""
        self.grid = grid or KarrasGrid()

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
        del x
        # no_grad as a decorator would hold on to its argument x
        with torch.no_grad():
            predict = denoiser.start(trajectory)
        memory: Memory = {}
        for i in range(len(levels) - 1):
            trajectory.sigma, trajectory.sigma_next = float(levels[i]), float(levels[i + 1])
            trajectory.step, trajectory.stage = i, "predictor"
            with torch.no_grad():
                self._step(trajectory, lambda x, sigma: predict(x, sigma, condition), sigmas[i], sigmas[i + 1], memory)
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
    def _step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Moves `trajectory.x` from `sigma` to `sigma_next`; `memory` lives as long as the trajectory."""


class Euler(Sampler):
    """First order: x' = clean + sigma' noise. N evaluations (DDIM with eta = 0)."""

    def _step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        trajectory.x = predict(trajectory.x, sigma).step(trajectory.x, sigma, sigma_next)


class Heun(Sampler):
    """Second order, EDM's sampler: Euler predictor, trapezoidal corrector, the last step Euler. 2 N - 1 evaluations.

    x' = clean + sigma noise + (sigma' - sigma) (noise + noise') / 2, where the first two terms are x unless a guidance
    tells clean and noise apart, and noise' is predicted at clean + sigma' noise.

    With `s_churn` > 0 each step at a level in [`s_min`, `s_max`] first raises the noise from sigma to
    sigma (1 + gamma), gamma = min(s_churn / N, sqrt(2) - 1), with fresh noise of standard deviation `s_noise`.
    """

    def __init__(
        self,
        grid: Grid | None = None,
        *,
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
    ) -> None:
        """`grid` as in `Sampler`; churn parameters as in EDM's algorithm 2."""
        super().__init__(grid)
        if s_churn < 0 or s_noise <= 0 or s_min > s_max:
            raise ValueError(
                f"Heun needs s_churn >= 0, s_noise > 0 and s_min <= s_max, got {s_churn}, {s_noise}, {s_min}, {s_max}"
            )
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise

    def _step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        if self.s_churn > 0 and self.s_min <= trajectory.sigma <= self.s_max:
            sigma = self._churn(trajectory, sigma)
        prediction = predict(trajectory.x, sigma)
        if trajectory.sigma_next == 0:
            trajectory.x = prediction.step(trajectory.x, sigma, sigma_next)
            return
        # half a step, all of it with the first noise, waits for the corrector, so that the old state can go
        middle = prediction.step(trajectory.x, sigma, (sigma + sigma_next) / 2)
        trajectory.x = prediction.step(trajectory.x, sigma, sigma_next)
        trajectory.stage = "corrector"
        del prediction
        noise = predict(trajectory.x, sigma_next).direction(trajectory.x, sigma_next)
        trajectory.x = middle.addcmul_(noise, (sigma_next - sigma) / 2)

    def _churn(self, trajectory: Trajectory, sigma: Tensor) -> Tensor:
        gamma = min(self.s_churn / (len(self.grid.sigmas()) - 1), math.sqrt(2) - 1)
        fresh = trajectory.seeds.normal("churn", trajectory.x.shape[1:], trajectory.x.device).to(trajectory.x)
        spread = trajectory.sigma * math.sqrt(gamma * (2 + gamma))
        trajectory.x = torch.add(trajectory.x, fresh, alpha=spread * self.s_noise)
        trajectory.sigma *= 1 + gamma
        return sigma * (1 + gamma)


class DPMSolver2M(Sampler):
    r"""DPM-Solver++(2M): second order multistep in the log-SNR, N evaluations.

    With h = ln(sigma / sigma'), r = h_before / h and D the clean estimate: x' = D + e^-h sigma noise
    + (1 - e^-h) (D - D_before) / (2 r); the first and the last step are first order. D_before is what the *noise* of
    the step before implies, x - sigma noise, equal to its clean estimate unless a guidance tells the two apart.
    """

    def _step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        prediction = predict(trajectory.x, sigma)
        clean, noise = prediction.clean, prediction.noise
        implied = clean if noise is None else torch.addcmul(trajectory.x, noise, sigma, value=-1)
        trajectory.x = prediction.step(trajectory.x, sigma, sigma_next)
        if trajectory.sigma_next > 0:
            h = math.log(trajectory.sigma / trajectory.sigma_next)
            if memory:
                factor = -math.expm1(-h) * h / (2 * float(memory["h"]))
                trajectory.x.add_(clean - memory["implied"], alpha=factor)
            memory.update(h=h, implied=implied)
