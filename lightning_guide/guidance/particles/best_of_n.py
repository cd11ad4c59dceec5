"""Best of N: of N samples the one with the lowest loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.particles.base import Particles, ParticleSampler
from lightning_guide.seeds import SampleSeeds

__all__ = ["BestOfN"]


class BestOfN(ParticleSampler):
    """Best-of-N sampler: N = `particles` independent samples of `sampler`, of which that with the lowest loss remains.

    The Kullback-Leibler divergence from the model's distribution is at most ln N - (N - 1) / N (equal if losses have
    no ties), which makes N comparable with the strength of other methods. N times the network calls.
    """

    def walk(
        self, denoiser: Denoiser, x: Tensor, seeds: SampleSeeds, condition: Tensor | None, particles: Particles
    ) -> tuple[Trajectory, Tensor]:
        """Sample all of them and choose."""
        *_, trajectory = self.sampler.steps(denoiser, x, seeds=seeds, condition=condition)
        with torch.no_grad():
            return trajectory, particles.best(-particles.loss(trajectory.x))
