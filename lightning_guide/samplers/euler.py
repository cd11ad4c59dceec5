"""Euler's method on the probability-flow ODE, which is DDIM with eta = 0."""

from __future__ import annotations

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.samplers.sampler import Memory, PredictAt, Sampler

__all__ = ["Euler"]


class Euler(Sampler):
    """First order: x' = clean + sigma' noise. N evaluations (DDIM with eta = 0)."""

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """One step from `sigma` to `sigma_next`."""
        trajectory.x = predict(trajectory.x, sigma).step(trajectory.x, sigma, sigma_next)
