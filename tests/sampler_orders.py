"""Orders of accuracy of samplers, measured on a Gaussian, whose trajectories are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.noise import Grid
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds

HIGH, LOW = 8.0, 0.1
MEAN, COVARIANCE = torch.tensor([0.3, -0.2]).double(), torch.tensor([[2.0, 1.0], [1.0, 1.5]]).double()


def walk(sampler: Sampler, denoiser: Denoiser, x: Tensor) -> Tensor:
    """Return the end of the trajectories from `x`."""
    *_, last = sampler.steps(denoiser, x, seeds=SampleSeeds(0, range(len(x))))
    return last.x


class Graded(Grid):
    """About n equal steps h in ln sigma from HIGH to LOW, after steps h^2, 2 h^2, ... < h, and two steps more.

    The first step is of first order, and so is the last one of a trajectory: with these lengths neither hides the order
    of the steps between.
    """

    def __init__(self, n: int) -> None:
        span = math.log(HIGH / LOW)
        h = span / n
        times, step = [0.0], h * h
        while step < h:
            times.append(times[-1] + step)
            step *= 2
        rest = span - times[-1]
        count = math.ceil(rest / h)
        times += [times[-1] + rest * (i + 1) / count for i in range(count)]
        self.end = len(times) - 1
        self.levels = HIGH * torch.tensor([*times, span + h, span + 2 * h], dtype=torch.float64).neg().exp()

    def sigmas(self) -> Tensor:
        return self.levels


def state_at_low(kind: Callable[[Grid], Sampler], n: int, x: Tensor) -> Tensor:
    """Return the state at LOW, two steps before the end."""
    grid = Graded(n)
    states = kind(grid).steps(gaussian(MEAN, COVARIANCE), x, seeds=SampleSeeds(0, range(len(x))))
    for _ in range(grid.end):
        trajectory = next(states)
    assert math.isclose(trajectory.sigma_next, LOW)
    return trajectory.x


def orders(kind: Callable[[Grid], Sampler]) -> list[float]:
    """Return log2 of the ratios of errors when the number of steps doubles."""
    x = HIGH * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, vectors = torch.linalg.eigh(COVARIANCE)
    scale = ((values + LOW**2) / (values + HIGH**2)).sqrt()
    exact = MEAN + (x - MEAN) @ vectors @ torch.diag(scale) @ vectors.T
    errors = [float((state_at_low(kind, n, x) - exact).abs().max()) for n in (64, 128, 256)]
    return [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
