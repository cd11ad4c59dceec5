"""Twisted diffusion sampler (TDS). Wu et al. 2023, https://arxiv.org/abs/2306.17775, algorithm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.particles.base import Particles, ParticleSampler
from lightning_guide.noise import Grid
from lightning_guide.objectives.energy import Energy
from lightning_guide.samplers.base import Memory, PredictAt, Sampler
from lightning_guide.samplers.euler import DDIM
from lightning_guide.seeds import SampleSeeds

__all__ = ["TDS"]


class TDS(ParticleSampler):
    """Twisted diffusion sampler: K particles that the gradient of a loss moves and weights correct.

    Target: p_0(x) exp(-loss(x)), up to normalization, with p_0 what `DDIM` with eta = 1 samples on the same grid; the
    twisting function at (x, sigma) is exp(-loss(D)). With q = (sigma' / sigma)^2 and s = sigma' sqrt(1 - q), a step of
    the model is N(m, s^2), m = (1 - q) D + q x, and the proposal is N(m~, s^2), with D - sigma^2 grad_x loss(D) for D.
    A particle's weight is multiplied by N(x'; m, s^2) / N(x'; m~, s^2) exp(loss(D) - loss(D')). A sample's particles
    are resampled where their effective number is below `threshold` K; the last step goes to D itself, and one particle
    is drawn at the end. Exact as K grows. K network calls and K backward passes a step.
    """

    def __init__(
        self, energy: Energy, grid: Grid | int | None = None, *, particles: int = 4, threshold: float = 0.5
    ) -> None:
        """Weigh by `energy` on the `grid` of `Sampler`; `particles` is K.

        Raises:
            ValueError: if `threshold` is outside [0, 1].
        """
        super().__init__(DDIM(grid), energy, particles=particles)
        if not 0 <= threshold <= 1:
            raise ValueError(f"TDS needs a threshold in [0, 1], got {threshold}")
        self.threshold = threshold

    def walk(
        self, denoiser: Denoiser, x: Tensor, seeds: SampleSeeds, condition: Tensor | None, particles: Particles
    ) -> tuple[Trajectory, Tensor]:
        """Move the particles by their proposals; weigh and resample them before each step."""
        steps = _TwistedSteps(self.grid, particles, self.threshold)
        *_, trajectory = steps.steps(denoiser, x, seeds=seeds, condition=condition)
        with torch.no_grad():
            return trajectory, particles.one(steps.log_weights - particles.loss(trajectory.x) + steps.loss)


class _TwistedSteps(Sampler):
    """Twisted proposals and weights of one walk."""

    def __init__(self, grid: Grid | int, particles: Particles, threshold: float) -> None:
        super().__init__(grid)
        self.particles, self.threshold = particles, threshold
        self.log_weights = self.loss = torch.zeros((), dtype=torch.float64, device=particles.numbers.device)

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Weigh the particles at x, resample them, and propose."""
        with torch.enable_grad():
            leaf = trajectory.x.detach().requires_grad_()
            clean = predict(leaf, sigma).clean
            loss = self.particles.loss(clean)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        x, clean, loss = trajectory.x, clean.detach(), loss.detach()
        # the first states are those of the prior: their weight is the twisting function itself
        self.log_weights = self.log_weights - loss + self.loss
        rows, self.log_weights = self.particles.ancestors(self.log_weights, self.threshold)
        x, clean, gradient = (each.index_select(0, rows) for each in (x, clean, gradient))
        self.loss = loss.flatten().index_select(0, rows).reshape_as(loss)
        if trajectory.sigma_next == 0:
            trajectory.x = clean
            return
        q = (sigma_next / sigma) ** 2
        s = sigma_next * (1 - q).sqrt()
        shift = -(1 - q) * sigma**2 * gradient  # m~ - m
        n = trajectory.seeds.normal("ancestral", x.shape[1:], x.device).to(x)
        trajectory.x = torch.lerp(clean, x, q) + shift + s * n
        # ln N(x'; m, s^2) - ln N(x'; m~, s^2) with x' - m = shift + s n
        ratio = -((shift / s).double().square() / 2 + (shift / s).double() * n.double()).flatten(1).sum(1)
        self.log_weights = self.log_weights + ratio.reshape_as(loss)
