"""Momentum guidance against its recursion written out, and where it has no effect."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.guidance import Guided
from lightning_guide.guidance.negatives import AverageVelocity, MomentumGuidance
from lightning_guide.noise import CustomGrid
from lightning_guide.samplers import Euler, Heun, Sampler
from tests import branches
from tests.branches import GRID, LEVELS, SAMPLERS, mixtures, start


def walk(sampler: Sampler, denoiser: Denoiser, x: Tensor) -> Tensor:
    return branches.walk(sampler, denoiser, x).x


def velocity(clean: Tensor, x: Tensor, sigma: float) -> Tensor:
    return (x - clean) / sigma - clean


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_euler_steps_written_out(decay: float) -> None:
    model, weight = mixtures()[0], 2.5
    x = expected = start(2)
    average = None
    for sigma, sigma_next in zip(LEVELS, LEVELS[1:], strict=False):
        v = velocity(model(expected, torch.tensor(sigma, dtype=torch.float64)), expected, sigma)
        guided = v if average is None else v + (weight - 1) * (v - average)
        average = v if average is None else decay * average + (1 - decay) * v
        clean = (expected - sigma * guided) / (1 + sigma)
        expected = clean + sigma_next * (expected - clean) / sigma
    torch.testing.assert_close(walk(Euler(GRID), MomentumGuidance(weight, decay=decay, positive=model), x), expected)


def test_the_corrector_uses_the_average_of_its_predictor() -> None:
    model, weight, decay = mixtures()[0], 1.7, 0.3
    x = start(2)

    def guided(at: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        v = velocity(model(at, torch.tensor(sigma, dtype=torch.float64)), at, sigma)
        g = v if average is None else average + weight * (v - average)
        return v, (at - (at - sigma * g) / (1 + sigma)) / sigma  # dx / dsigma

    expected, average = x, None
    for sigma, sigma_next in zip(LEVELS, LEVELS[1:], strict=False):
        v, slope = guided(expected, sigma)
        end = expected + (sigma_next - sigma) * slope
        if average is None:  # the negative of the first step is the positive, in its corrector as well
            first = v
        if sigma_next:
            before, average = average, average if average is not None else first
            second = guided(end, sigma_next)[1]
            average = before
            expected = expected + (sigma_next - sigma) * (slope + second) / 2
        else:
            expected = end
        average = v if average is None else decay * average + (1 - decay) * v
    found = walk(Heun(GRID), MomentumGuidance(weight, decay=decay, positive=model), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_no_effect_at_weight_one_and_on_straight_trajectories(sampler: Sampler) -> None:
    model, x = mixtures()[0], start(2)
    assert torch.equal(walk(sampler, MomentumGuidance(1.0, positive=model), x), walk(sampler, model, x))
    point = gaussian([0.3, -0.2], 1e-12)  # all velocities of a trajectory are equal
    torch.testing.assert_close(
        walk(sampler, MomentumGuidance(3.0, positive=point), x), walk(sampler, point, x), rtol=1e-6, atol=1e-6
    )


def test_weight_1_5_without_memory_is_adams_bashforth() -> None:
    """3/2 v - 1/2 v_before: Euler steps of equal length in t become second order."""
    model = gaussian([0.3, -0.2], [[2.0, 1.0], [1.0, 1.5]])
    t = [0.9 * (1 - i / 1024) for i in range(1025)]
    x = 9 * torch.randn(20, 2, dtype=torch.float64)

    def end(denoiser: Denoiser, every: int) -> Tensor:
        return walk(Euler(CustomGrid([each / (1 - each) for each in t[:-1:every]])), denoiser, x)

    exact = walk(Heun(CustomGrid([each / (1 - each) for each in t[:-1]])), model, x)
    for guidance, order in ((model, 1), (MomentumGuidance(1.5, decay=0.0, positive=model), 2)):
        errors = [float((end(guidance, every) - exact).norm()) for every in (16, 8)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_one_network_call_a_step_and_a_new_average_for_each_trajectory() -> None:
    guidance, x = MomentumGuidance(2.0, positive=mixtures()[0]), start(2)
    first, second = walk(Euler(GRID), guidance, x), walk(Euler(GRID), guidance, x)
    assert torch.equal(first, second)
    end = branches.walk(Euler(GRID), guidance, x)
    assert end.evaluations == len(LEVELS) - 1


def test_beside_another_negative() -> None:
    (good, bad, _), x = mixtures(), start(2)
    both = Guided([AverageVelocity(0.4, positive=good), bad], [1.5, 1.0], positive=good)
    torch.testing.assert_close(
        walk(Euler(GRID), both, x), walk(Euler(GRID), MomentumGuidance(1.5, decay=0.4, positive=good), x)
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_decay_is_checked(decay: float) -> None:
    with pytest.raises(ValueError, match="AverageVelocity needs a decay of at least 0 and below 1"):
        AverageVelocity(decay)
