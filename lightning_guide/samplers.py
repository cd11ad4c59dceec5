"""Samplers: from noise to samples along the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma.

Euler, Heun with optional churn (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithms 1 and 2) and
DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095) in the variance-exploding form. A sampler moves
along the *noise* of a prediction and lands on its *clean* estimate, so guidances that tell the two apart work in all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.seeds import SampleSeeds

__all__ = ["DPMSolver2M", "Euler", "Heun", "Sampler"]


def direction(prediction: Prediction, x: Tensor, sigma: Tensor) -> Tensor:
    """The noise direction of a prediction at (x, sigma): its own, or (x - clean) / sigma."""
    return (x - prediction.clean) / sigma if prediction.noise is None else prediction.noise


class Sampler(ABC):
    """Base of all samplers. Holds no state between trajectories."""

    def __init__(self, grid: Grid | None = None) -> None:
        """`grid` of noise levels; the default is EDM's with 32 steps from 80 to 0.002."""
        self.grid = grid or KarrasGrid()

    def initial(self, denoiser: Denoiser, seeds: SampleSeeds, device: torch.device | str = "cpu") -> Tensor:
        """Noise at the first level, sigma_0 z with z standard normal, `(B, *data_shape)`."""
        return float(self.grid.sigmas()[0]) * seeds.normal("initial", denoiser.data_shape, device)

    @torch.no_grad()
    def steps(
        self, denoiser: Denoiser, x: Tensor, *, seeds: SampleSeeds, condition: Tensor | None = None
    ) -> Iterator[Trajectory]:
        """Walks from `x` (B, *) at sigma_0 to 0 and yields the trajectory after each step.

        It is one object that moves on; `trajectory.x` is the state, `trajectory.sigma_next` its noise level.

        Raises:
            ValueError: if `x` does not have one row for each seed.
        """
        if len(x) != len(seeds):
            raise ValueError(f"x has {len(x)} rows for {len(seeds)} sample seeds")
        levels = self.grid.sigmas()
        sigmas = levels.to(x)
        trajectory = Trajectory(x=x, seeds=seeds, sigma=float(levels[0]))
        del x
        predict = denoiser.start(trajectory)
        memory: dict[str, Tensor | float] = {}
        for i in range(len(levels) - 1):
            trajectory.sigma, trajectory.sigma_next = float(levels[i]), float(levels[i + 1])
            trajectory.stage = "predictor"
            self._step(trajectory, predict, condition, sigmas[i], sigmas[i + 1], memory)
            yield trajectory

    def sample(
        self, denoiser: Denoiser, *, seeds: SampleSeeds, condition: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Trajectory:
        """Draws the samples of `seeds`: the finished trajectory with `x` (B, *data_shape) and `evaluations`."""
        trajectory = None
        steps = self.steps(denoiser, self.initial(denoiser, seeds, device), seeds=seeds, condition=condition)
        for trajectory in steps:
            pass
        return trajectory

    @abstractmethod
    def _step(
        self,
        trajectory: Trajectory,
        predict: Predict,
        condition: Tensor | None,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Tensor | float],
    ) -> None:
        """Moves `trajectory.x` from `sigma` to `sigma_next`; `memory` lives as long as the trajectory."""


class Euler(Sampler):
    """First order: x' = clean + sigma' noise. N evaluations (DDIM with eta = 0)."""

    def _step(self, trajectory, predict, condition, sigma, sigma_next, memory) -> None:  # type: ignore[no-untyped-def]
        prediction = predict(trajectory.x, sigma, condition)
        noise = direction(prediction, trajectory.x, sigma)
        trajectory.x = torch.addcmul(prediction.clean, noise, sigma_next)


class Heun(Sampler):
    """Second order, EDM's sampler: Euler predictor, trapezoidal corrector, the last step Euler. 2 N - 1 evaluations.

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

    def _step(self, trajectory, predict, condition, sigma, sigma_next, memory) -> None:  # type: ignore[no-untyped-def]
        if self.s_churn > 0 and self.s_min <= trajectory.sigma <= self.s_max:
            sigma = self._churn(trajectory, sigma)
        half = (sigma_next - sigma) / 2
        prediction = predict(trajectory.x, sigma, condition)
        if trajectory.sigma_next == 0:
            trajectory.x = prediction.clean
            return
        noise = direction(prediction, trajectory.x, sigma)
        del prediction
        # x + half noise is kept for the corrector, so that the old state can go
        middle = torch.addcmul(trajectory.x, noise, half)
        trajectory.x = torch.addcmul(middle, noise, half)
        del noise
        trajectory.stage = "corrector"
        prediction = predict(trajectory.x, sigma_next, condition)
        trajectory.x = middle.addcmul_(direction(prediction, trajectory.x, sigma_next), half)

    def _churn(self, trajectory: Trajectory, sigma: Tensor) -> Tensor:
        gamma = min(self.s_churn / (len(self.grid.sigmas()) - 1), math.sqrt(2) - 1)
        raised = sigma * (1 + gamma)
        fresh = trajectory.seeds.normal("churn", trajectory.x.shape[1:], trajectory.x.device)
        trajectory.x = trajectory.x + (raised**2 - sigma**2).sqrt() * self.s_noise * fresh.to(trajectory.x)
        trajectory.sigma = float(raised)
        return raised


class DPMSolver2M(Sampler):
    r"""DPM-Solver++(2M): second order multistep in the log-SNR, N evaluations.

    With h = ln(sigma / sigma'), r = h_before / h and D the clean estimate: x' = D + e^-h sigma noise
    + (1 - e^-h) (D - D_before) / (2 r); the first and the last step are first order. D_before is what the *noise* of
    the step before implies, x - sigma noise, equal to its clean estimate unless a guidance tells the two apart.
    """

    def _step(self, trajectory, predict, condition, sigma, sigma_next, memory) -> None:  # type: ignore[no-untyped-def]
        prediction = predict(trajectory.x, sigma, condition)
        noise = direction(prediction, trajectory.x, sigma)
        implied = prediction.clean if prediction.noise is None else trajectory.x - sigma * noise
        trajectory.x = torch.addcmul(prediction.clean, noise, sigma_next)
        if trajectory.sigma_next > 0:
            h = math.log(trajectory.sigma / trajectory.sigma_next)
            if memory:
                factor = -math.expm1(-h) * h / (2 * float(memory["h"]))
                trajectory.x = trajectory.x + factor * (prediction.clean - memory["implied"])
            memory.update(h=h, implied=implied)
