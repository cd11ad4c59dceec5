"""Particle samplers: K candidates of each sample, weighted by an energy, of which one remains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_guide.conditioning import LabelReader, condition_on
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.objectives.energy import Energy
from lightning_guide.samplers.base import Memory, PredictAt, Sampler
from lightning_guide.seeds import SampleSeeds

__all__ = ["ParticleSampler", "Particles", "resampled"]


class Particles:
    """K particles of each of B samples, in rows sample by sample: the loss of rows, and choices within each sample."""

    def __init__(self, energy: Energy, trajectory: Trajectory, condition: Tensor | None, count: int) -> None:
        """Start `energy` on the `trajectory` of the B samples under `condition` (B,); `count` is K."""
        self.seeds, self.count = trajectory.seeds, count
        device = trajectory.x.device
        self.numbers = torch.arange(len(self.seeds), device=device).repeat_interleave(count)
        labeled = condition is not None and energy.num_classes > 0
        self.condition = condition.repeat_interleave(count, 0) if labeled and condition is not None else None
        self._loss = energy.to(device).eval().start(trajectory)  # waits once, if the energy is on the host

    def loss(self, clean: Tensor) -> Tensor:
        """Return the loss (B, K) of `clean` (B K, *), float64."""
        return self._loss(clean, self.condition, self.numbers).reshape(-1, self.count).double()

    def ancestors(self, log_weights: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Resample where the effective number of particles is below `threshold` K; return rows and new weights.

        The effective number is 1 / sum w^2. Systematic resampling: the chosen rows (B K,), in the order of particles,
        and the log-weights (B, K), equal where resampled.
        """
        weights = log_weights.softmax(1)
        poor = 1 / weights.square().sum(1, keepdim=True) < threshold * self.count
        offset = self.seeds.uniform("resample", (1,), weights.device).double()
        ladder = (offset + torch.arange(self.count, device=weights.device)) / self.count
        own = torch.arange(self.count, device=weights.device).expand_as(weights)
        chosen = torch.where(poor, _search(weights, ladder), own)
        return self._rows(chosen), torch.where(poor, log_weights.logsumexp(1, keepdim=True), log_weights)

    def one(self, log_weights: Tensor) -> Tensor:
        """Draw one particle of each sample by its weight; return their rows (B,)."""
        draw = self.seeds.uniform("choice", (1,), log_weights.device).double()
        return self._rows(_search(log_weights.softmax(1), draw))

    def best(self, values: Tensor) -> Tensor:
        """Return the rows (B,) of the particles with the highest of `values` (B, K)."""
        return self._rows(values.argmax(1, keepdim=True))

    def _rows(self, chosen: Tensor) -> Tensor:
        first = torch.arange(len(chosen), device=chosen.device)[:, None] * self.count
        return (first + chosen).flatten()


def _search(weights: Tensor, at: Tensor) -> Tensor:
    """Return the particles (B, n) in whose share of [0, 1) the numbers `at` (B, n) lie."""
    return torch.searchsorted(weights.cumsum(1), at).clamp(max=weights.shape[1] - 1)


def resampled(trajectory: Trajectory, rows: Tensor) -> None:
    """Replace the states of `trajectory` by its `rows`."""
    trajectory.x = trajectory.x.index_select(0, rows)


class ParticleSampler(Sampler, ABC):
    """Base of particle samplers: each of B samples is drawn as K particles, rows of one batch of B K.

    Samples do not influence each other, so they are the same in any batch and on any number of processes. The network
    calls of a sample are K times those of `sampler`. Memory grows with K as with the batch size.
    """

    selects = True

    def __init__(self, sampler: Sampler, energy: Energy, *, particles: int) -> None:
        """`sampler` moves the particles, on its grid; `energy` weighs them; `particles` is K.

        Raises:
            ValueError: if there is no particle.
        """
        super().__init__(self.moves(sampler).grid)
        if particles < 1:
            raise ValueError(f"{type(self).__name__} needs at least one particle, got {particles}")
        self.sampler, self.energy, self.particles = sampler, energy, particles

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """Take the step of `sampler`: the way of a single particle."""
        self.sampler.step(trajectory, predict, sigma, sigma_next, memory)

    def sample(
        self,
        denoiser: Denoiser,
        *,
        seeds: SampleSeeds,
        condition: Tensor | None = None,
        device: torch.device | str = "cpu",
        start: Callable[[Tensor], Tensor] | None = None,
    ) -> Trajectory:
        """Draw the samples of new `seeds` as `Sampler.sample`: K particles of each, of which one is returned."""
        count = self.particles
        many = seeds.repeated(count, "particles")
        x = self.sampler.initial(denoiser, many, device)
        if start is not None:
            x = torch.stack([start(noise) for noise in x.unflatten(0, (-1, count)).unbind(1)], 1).flatten(0, 1)
        if isinstance(self.energy, LabelReader) and condition is not None:
            self.energy.check_condition(condition.cpu())
        condition = condition_on(x.device, condition, denoiser)
        level = float(self.sampler.levels(denoiser)[0])
        with torch.no_grad():
            particles = Particles(self.energy, Trajectory(x[::count], seeds, level), condition, count)
        repeated = None if condition is None else condition.repeat_interleave(count, 0)
        trajectory, rows = self.walk(denoiser, x, many, repeated, particles)
        trajectory.x, trajectory.seeds = trajectory.x.index_select(0, rows), seeds
        trajectory.evaluations *= count
        trajectory.diagnostics = {name: each.index_select(0, rows) for name, each in trajectory.diagnostics.items()}
        return trajectory

    @abstractmethod
    def walk(
        self, denoiser: Denoiser, x: Tensor, seeds: SampleSeeds, condition: Tensor | None, particles: Particles
    ) -> tuple[Trajectory, Tensor]:
        """Move all particles `x` (B K, *) to the end; return their trajectory and the rows (B,) that remain."""
