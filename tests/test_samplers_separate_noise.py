"""Samplers with guidances that return a separate noise direction, as CFG++ does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.samplers import DEIS, DPMSolver2M, DPMSolver3M, Euler, Heun, Sampler, SDEDPMSolver2M, UniPC
from lightning_guide.seeds import SampleSeeds


def walk(sampler: Sampler, denoiser: Denoiser, x: Tensor) -> Tensor:
    """Return the final state of the trajectory that starts at `x`."""
    *_, last = sampler.steps(denoiser, x, seeds=SampleSeeds(0, range(len(x))))
    return last.x


class SeparateNoise(Denoiser):
    """CFG++: clean from the guided prediction, noise from the unconditional one."""

    def __init__(self, cond: GaussianMixture, uncond: GaussianMixture, weight: float) -> None:
        super().__init__()
        self.cond, self.uncond, self.weight = cond, uncond, weight
        self.data_shape, self.num_classes, self.sigma_data = cond.data_shape, 0, 0.5

    def both(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        neg = self.uncond(x, sigma)
        return neg + self.weight * (self.cond(x, sigma) - neg), neg

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.both(x, sigma)[0]

    def start(self, trajectory: Trajectory) -> Predict:
        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            guided, neg = self.both(x, sigma)
            return Prediction(guided, (x - neg) / sigma)

        return predict


COND = GaussianMixture([[1.0, 0.2], [0.8, -0.6]], 0.2 * torch.eye(2).expand(2, 2, 2))
UNCOND = GaussianMixture([[1.0, 0.2], [-1.0, -0.6]], 0.5 * torch.eye(2).expand(2, 2, 2))


def euler_separate(model: SeparateNoise, x: Tensor, levels: list[float]) -> Tensor:
    """Euler: x <- D_w + sigma' (x - D_neg) / sigma."""
    for t, t_next in zip(levels, levels[1:], strict=False):
        guided, neg = model.both(x, torch.tensor(t).double())
        x = guided + t_next * (x - neg) / t
    return x


def heun_separate(model: SeparateNoise, x: Tensor, levels: list[float]) -> Tensor:
    """Heun: add D_w - D_neg once a step, then use the trapezoidal rule along the noise of the negative."""
    for t, t_next in zip(levels, levels[1:], strict=False):
        guided, neg = model.both(x, torch.tensor(t).double())
        jumped, d = x + guided - neg, (x - neg) / t
        x = jumped + (t_next - t) * d
        if t_next:
            neg = model.both(x, torch.tensor(t_next).double())[1]
            x = jumped + (t_next - t) * (d + (x - neg) / t_next) / 2
    return x


def multistep_separate(model: SeparateNoise, x: Tensor, levels: list[float]) -> Tensor:
    """DPM-Solver++(2M), without history in the first and last step.

    x <- D_w - e^-h D_neg - (e^-h - 1) (D_w - D_neg,old) / (2 r) + e^-h x.
    """
    old, h_old = None, 0.0
    for t, t_next in zip(levels, levels[1:], strict=False):
        guided, neg = model.both(x, torch.tensor(t).double())
        if t_next == 0:
            return guided
        h = math.log(t / t_next)
        decay = math.exp(-h)
        step = guided - decay * neg + decay * x
        if old is not None:
            step = step - (decay - 1) * (guided - old) / (2 * h_old / h)
        x, old, h_old = step, neg, h
    return x


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        (Euler, euler_separate),
        (Heun, heun_separate),
        (DPMSolver2M, multistep_separate),
        (lambda grid: UniPC(grid, order=2, corrector=False), multistep_separate),
    ],
)
def test_separate_noise_gives_the_published_updates(
    kind: Callable[[Grid], Sampler], formula: Callable[[SeparateNoise, Tensor, list[float]], Tensor], weight: float
) -> None:
    model, x = SeparateNoise(COND, UNCOND, weight), 5 * torch.randn(6, 2, dtype=torch.float64)
    grid = KarrasGrid(12, sigma_max=5.0, sigma_min=0.01)
    torch.testing.assert_close(walk(kind(grid), model, x), formula(model, x, grid.sigmas().tolist()))
    if weight == 0:
        torch.testing.assert_close(walk(kind(grid), model, x), walk(kind(grid), UNCOND, x))


class ExplicitNoise(GaussianMixture):
    """Returns the implied noise explicitly."""

    def start(self, trajectory: Trajectory) -> Predict:
        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            clean = self(x, sigma, condition)
            return Prediction(clean, (x - clean) / sigma)

        return predict


@pytest.mark.parametrize("kind", [DEIS, Euler, Heun, DPMSolver2M, DPMSolver3M, UniPC, SDEDPMSolver2M])
def test_explicit_implied_noise_changes_nothing(kind: type[Sampler]) -> None:
    x, explicit = (
        5 * torch.randn(6, 2, dtype=torch.float64),
        ExplicitNoise(COND.means, 0.2 * torch.eye(2).expand(2, 2, 2)),
    )
    grid = KarrasGrid(12, sigma_max=5.0)
    torch.testing.assert_close(walk(kind(grid), explicit, x), walk(kind(grid), COND, x))
