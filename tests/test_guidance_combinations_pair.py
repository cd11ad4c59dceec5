"""The three spaces of a pair: each prediction again as a noise, as a velocity, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations import AdaptiveProjection, Pair, PairCombination, SlidingMode
from tests.branches import combined, trajectory_at


def pair(dtype: torch.dtype = torch.float64, sigma: float = 0.7) -> tuple[Pair, Tensor]:
    """x_0 and eps of a positive and a negative that agree on x = x_0 + sigma eps, and the positive's eps."""
    x, pos, neg = torch.randn(3, 4, 3, 5, dtype=torch.float64).to(dtype)
    return Pair(Prediction(pos), Prediction(neg), 2.0, x, torch.tensor(sigma, dtype=dtype)), (x - pos) / sigma


@pytest.mark.parametrize("sigma", [0.01, 0.7, 50.0])
def test_spaces(sigma: float) -> None:
    at, eps = pair(sigma=sigma)
    t = sigma / (1 + sigma)
    for clean, noise, velocity in zip(at.clean, at.noise, at.velocity, strict=True):
        torch.testing.assert_close(clean + sigma * noise, at.x)
        flow = (1 - t) * clean + t * noise  # the flow's point is x, scaled, and v its slope in t
        torch.testing.assert_close(flow, at.x / (1 + sigma))
        torch.testing.assert_close(flow - t * velocity, clean)
    torch.testing.assert_close(at.noise[0], eps)
    assert torch.equal(at.difference, at.clean[0] - at.clean[1])


@pytest.mark.parametrize("sigma", [0.01, 0.7, 50.0])
def test_a_step_in_one_space_is_a_step_in_another(sigma: float) -> None:
    at, _ = pair(sigma=sigma)
    for (pos, neg), back in ((at.noise, at.from_noise), (at.velocity, at.from_velocity)):
        torch.testing.assert_close(back(pos - neg), at.difference)


def test_half_precision_is_widened() -> None:
    at, _ = pair(torch.float16, sigma=0.002)
    x, pos = at.x.double(), at.pos.clean.double()
    eps = (x - pos) / at.sigma.double()
    for tensor in (*at.clean, *at.noise, *at.velocity, at.difference, at.from_noise(at.noise[0])):
        assert tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
    torch.testing.assert_close(at.velocity[0].double(), eps - pos, rtol=1e-5, atol=1e-3)
    double, _ = pair()
    assert double.noise[0].dtype == torch.float64


class Numbered(PairCombination):
    """Adds the number of calls that this negative has had, times the weight."""

    def __init__(self) -> None:
        self.total = 0.0

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        self.total += pair.weight
        return torch.full_like(pair.x, self.total)


def test_each_negative_keeps_its_own_state_while_others_are_off() -> None:
    x, pos = torch.zeros(2, 1), torch.zeros(2, 1)
    assert float(combined(Numbered(), x, 0.7, pos, (2.0, x), (1.0, x), (3.0, x))[0]) == 5.0
    rule, at = Numbered(), trajectory_at(x, 0.7)
    totals = []
    for weights in ((2.0, 1.0), (1.0, 10.0), (2.0, 10.0)):
        branches = [(weight, lambda x, sigma: Prediction(x)) for weight in weights]
        guided = rule.combine(lambda x, sigma: Prediction(x), branches, x, torch.tensor(0.7), at)
        totals.append(float(guided.clean[0]))
    assert totals == [2.0, 10.0, 4.0 + 20.0]


@pytest.mark.parametrize("rule", [AdaptiveProjection(momentum=-0.5), SlidingMode(rate=1e-6, gain=0.1)])
def test_a_repeated_step_remembers_the_step_before(rule: PairCombination) -> None:
    at = [(pair()[0], trajectory_at(torch.zeros(3, 4, 3, 5), 0.7, step, 3)) for step in (0, 1)]
    once, repeated = copy.deepcopy(rule), copy.deepcopy(rule)
    expected = [once.push(*each) for each in at]
    for each, push in zip(at, expected, strict=True):
        for _ in range(2):
            torch.testing.assert_close(repeated.push(*each), push)
