"""Feynman-Kac steering. Singhal et al. 2025, https://arxiv.org/abs/2501.06848, with the difference potential."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.base import LastPrediction
from lightning_guide.guidance.particles.base import Particles, ParticleSampler, resampled
from lightning_guide.objectives.energy import Energy
from lightning_guide.samplers.base import Sampler
from lightning_guide.samplers.euler import Ancestral
from lightning_guide.samplers.heun import Heun
from lightning_guide.seeds import SampleSeeds

__all__ = ["FeynmanKac"]


class FeynmanKac(ParticleSampler):
    """Feynman-Kac steering: K particles of a stochastic sampler, resampled on the way by the loss of clean estimates.

    Target: p_0(x) exp(-strength loss(x)), up to normalization, with p_0 what `sampler` samples. After each step a
    particle's weight is multiplied by exp(-strength (loss(D) - loss(D_before))), D the clean estimate of that step; the
    product telescopes to exp(-strength loss(x_0)) for any D, so that the samples are exact as K grows, and the
    estimates only decide when particles are dropped. A sample's particles are resampled where their effective number is
    below `threshold` K; one of them is drawn at the end. No gradient is needed. K times the network calls.

    `sampler` must add noise, else copies of a particle stay equal: `DDIM`, `ProportionalAncestral`, or `Heun` with
    churn. A guidance that keeps a state of each row (momentum, APG) keeps it by row, not by particle.
    """

    def __init__(
        self,
        sampler: Sampler,
        energy: Energy,
        *,
        particles: int = 4,
        strength: float = 1.0,
        threshold: float = 0.5,
        every: int = 1,
    ) -> None:
        """Steer by `energy`, evaluated after each `every`-th step; `sampler` and `particles` as in `ParticleSampler`.

        Raises:
            ValueError: if `sampler` adds no noise or keeps a history, `threshold` is outside [0, 1] or `every` below 1.
        """
        super().__init__(sampler, energy, particles=particles)
        noisy = (isinstance(sampler, Ancestral) and sampler.eta > 0) or (isinstance(sampler, Heun) and sampler.s_churn)
        if not noisy:
            raise ValueError(
                "FeynmanKac needs a sampler that adds noise and has no history, DDIM, ProportionalAncestral or Heun "
                f"with s_churn > 0, got {type(sampler).__name__}"
            )
        if not 0 <= threshold <= 1 or every < 1:
            raise ValueError(f"FeynmanKac needs a threshold in [0, 1] and every >= 1, got {threshold} and {every}")
        self.strength, self.threshold, self.every = strength, threshold, every

    def walk(
        self, denoiser: Denoiser, x: Tensor, seeds: SampleSeeds, condition: Tensor | None, particles: Particles
    ) -> tuple[Trajectory, Tensor]:
        """Move the particles; weigh and resample them after each step."""
        watched = LastPrediction(denoiser)
        log_weights = before = torch.zeros(len(x) // self.particles, self.particles, device=x.device).double()
        for trajectory in self.sampler.steps(watched, x, seeds=seeds, condition=condition):
            last = trajectory.sigma_next == 0
            if not last and (trajectory.step + 1) % self.every:
                continue
            assert watched.clean is not None
            with torch.no_grad():
                value = -self.strength * particles.loss(trajectory.x if last else watched.clean)
            log_weights, before = log_weights + value - before, value
            if not last:
                rows, log_weights = particles.ancestors(log_weights, self.threshold)
                resampled(trajectory, rows)
                before = before.flatten().index_select(0, rows).reshape_as(before)
        return trajectory, particles.one(log_weights)
