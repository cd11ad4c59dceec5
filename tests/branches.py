"""Helpers for tests of combinations: constant branches, Gaussians on data of any shape, sampled trajectories."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import Guided, WeightSchedule
from lightning_guide.guidance.combinations import Combination
from lightning_guide.guidance.combinations.base import Branch
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from lightning_guide.seeds import SampleSeeds

GRID = KarrasGrid(6, sigma_max=5.0, sigma_min=0.01)
SAMPLERS = [Euler(GRID), Heun(GRID), DPMSolver2M(GRID)]
LEVELS = GRID.sigmas().tolist()


class Blob(Denoiser):
    """N(mean, variance I) on data of any shape: D = mean + variance / (variance + sigma^2) (x - mean)."""

    num_classes, sigma_data = 0, 0.5

    def __init__(self, shape: Sequence[int], mean: float, variance: float) -> None:
        super().__init__()
        self.data_shape, self.variance = tuple(shape), variance
        pattern = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(*shape)
        self.mean = mean * torch.cos(7 * pattern) + mean**2 * pattern

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        mean = self.mean.to(x)
        return mean + self.variance / (self.variance + sigma**2) * (x - mean)


class Net(Denoiser):
    """A small network with parameters; keeps a weak reference to its last hidden activations."""

    data_shape, num_classes, sigma_data = (3, 4, 4), 0, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64) for _ in range(2))
        self.hidden: weakref.ref[Tensor] = weakref.ref(torch.zeros(()))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.hidden = weakref.ref(hidden)
        return self.last(hidden) + x / (1 + sigma**2)


def mixtures() -> list[GaussianMixture]:
    """Return a good model of points in the plane and two worse ones."""
    means = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]])
    spreads = [(0.0, 0.2), (0.1, 0.5), (-0.2, 1.0)]
    return [
        GaussianMixture(means + shift, var * torch.eye(2).expand(3, 2, 2), [1.0, 2.0, 1.0]) for shift, var in spreads
    ]


def blobs(*shape: int) -> list[Blob]:
    """Return a good model of data of any shape and two worse ones."""
    return [Blob(shape, 0.4, 0.2), Blob(shape, 0.6, 0.5), Blob(shape, -0.3, 1.0)]


def constant_branch(clean: Tensor, noise: Tensor | None = None) -> Branch:
    """Return a branch with the same prediction everywhere."""
    return lambda x, sigma: Prediction(clean, noise)


def trajectory_at(x: Tensor, sigma: float, step: int = 0, steps: int = 1) -> Trajectory:
    """Return a trajectory at one point."""
    return Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=sigma, step=step, steps=steps)


def combined(
    rule: Combination,
    x: Tensor,
    sigma: float,
    pos: Tensor,
    *negatives: tuple[float, Tensor],
    step: int = 0,
    steps: int = 1,
) -> Tensor:
    """Return the clean estimate of `rule` for constant branches; the gradient of the positive exists and is 0."""
    branches = [(weight, constant_branch(neg)) for weight, neg in negatives]
    level, at = torch.tensor(sigma, dtype=x.dtype), trajectory_at(x, sigma, step, steps)
    return copy.deepcopy(rule).combine(lambda x, sigma: Prediction(pos + 0 * x), branches, x, level, at).clean


def guided(
    models: Sequence[Denoiser], weights: Sequence[float | WeightSchedule], rule: Combination | None = None
) -> Guided:
    """Return the first model guided away from the others."""
    return Guided(models[1:], weights, positive=models[0], combination=rule)


def walk(sampler: Sampler, denoiser: Denoiser, x: Tensor, condition: Tensor | None = None) -> Trajectory:
    """Return the final state of the trajectory that starts at `x`."""
    *_, last = sampler.steps(denoiser, x, seeds=SampleSeeds(0, range(len(x))), condition=condition)
    return last


def start(*shape: int, batch: int = 3) -> Tensor:
    """Return noise at the first level, float64."""
    return LEVELS[0] * torch.randn(batch, *shape, dtype=torch.float64)
