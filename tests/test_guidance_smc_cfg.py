"""Sliding-mode control of guidance against its recursion on single numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.guidance.combinations import SlidingMode
from lightning_guide.samplers import Euler, Heun
from tests.branches import GRID, LEVELS, Blob, combined, constant_branch, guided, start, trajectory_at, walk

MODELS = [Blob((1,), 0.4, 0.2), Blob((1,), 0.6, 0.5)]


def sign(value: float) -> float:
    return (value > 0) - (value < 0)


def guided_velocity(
    x: float, sigma: float, before: float | None, *, weight: float, rate: float, gain: float
) -> tuple[float, float]:
    """Guided velocity at one number x, and the corrected difference."""
    at, level = torch.tensor([[x]], dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    v_pos, v_neg = (float((at - D) / sigma - D) for D in (model(at, level) for model in MODELS))
    e = v_pos - v_neg
    last = e if before is None else before
    e = e - gain * sign(e - last + rate * last)
    return v_neg + weight * e, e


def slope(x: float, sigma: float, velocity: float) -> float:
    """dx / dsigma for D = (x - sigma v) / (1 + sigma)."""
    return (x - (x - sigma * velocity) / (1 + sigma)) / sigma


def euler(x: float, **settings: float) -> float:
    before = None
    for sigma, sigma_next in zip(LEVELS, LEVELS[1:], strict=False):
        v, before = guided_velocity(x, sigma, before, **settings)
        x += (sigma_next - sigma) * slope(x, sigma, v)
    return x


def heun(x: float, **settings: float) -> float:
    before = None
    for sigma, sigma_next in zip(LEVELS, LEVELS[1:], strict=False):
        v, now = guided_velocity(x, sigma, before, **settings)
        first = slope(x, sigma, v)
        end = x + (sigma_next - sigma) * first
        if sigma_next > 0:
            v, _ = guided_velocity(end, sigma_next, before, **settings)
            end = x + (sigma_next - sigma) * (first + slope(end, sigma_next, v)) / 2
        x, before = end, now
    return x


@pytest.mark.parametrize(("rate", "gain"), [(5.0, 0.2), (0.3, 0.05), (1.0, 0.1)])
@pytest.mark.parametrize(("sampler", "by_hand"), [(Euler(GRID), euler), (Heun(GRID), heun)])
def test_recursion_written_out(sampler: Euler, by_hand: object, rate: float, gain: float) -> None:
    x = start(1, batch=5)
    end = walk(sampler, guided(MODELS, [2.5], SlidingMode(rate=rate, gain=gain)), x).x
    assert callable(by_hand)
    expected = [by_hand(float(each), weight=2.5, rate=rate, gain=gain) for each in x]
    torch.testing.assert_close(end[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def velocities(x: Tensor, sigma: float, *cleans: Tensor) -> list[Tensor]:
    return [(x - clean) / sigma - clean for clean in cleans]


@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0])
def test_the_first_step_makes_every_difference_smaller_by_the_gain(rate: float) -> None:
    """s = lambda e has the sign of e; differences below the gain change their sign."""
    x, pos, neg = torch.randn(3, 6, 4, dtype=torch.float64)
    out = combined(SlidingMode(rate=rate, gain=0.3), x, 0.7, pos, (3.0, neg))
    v_pos, v_neg = velocities(x, 0.7, pos, neg)
    e = v_pos - v_neg
    v = v_neg + 3 * (e.abs() - 0.3) * e.sign()
    torch.testing.assert_close(out, (x - 0.7 * v) / 1.7)


def test_the_surface_remembers_the_step_before() -> None:
    """At a small rate s is the change of e: where e grows it is made smaller, where it shrinks larger."""
    rule = SlidingMode(rate=1e-6, gain=0.1)
    x, pos, neg = torch.zeros(3, 1, 2, dtype=torch.float64)
    pos = pos + torch.tensor([[1.0, 1.0]]) / 2  # sigma = 1: v = x - 2 D
    first = guided_steps(rule, x, [pos, pos * torch.tensor([[2.0, 0.5]])], neg)
    e = [torch.tensor([[-1.0, -1.0]]).double() + 0.1]  # corrected toward 0
    second = torch.tensor([[-2.0, -0.5]]).double()
    e.append(second + torch.tensor([[0.1, -0.1]]))
    for found, expected in zip(first, e, strict=True):
        torch.testing.assert_close(found, expected * 2.0 / -2)


def guided_steps(rule: SlidingMode, x: Tensor, positives: list[Tensor], neg: Tensor) -> list[Tensor]:
    """Clean estimates of one step after another at x = 0, sigma = 1, D_neg = 0, w = 2."""
    found = []
    for step, pos in enumerate(positives):
        at = trajectory_at(x, 1.0, step, len(positives))
        branches = constant_branch(pos), [(2.0, constant_branch(neg))]
        found.append(rule.combine(*branches, x, torch.tensor(1.0).double(), at).clean)
    return found


@pytest.mark.parametrize(("rate", "gain"), [(0.0, 0.1), (-1.0, 0.1), (math.inf, 0.1), (5.0, -0.1), (5.0, math.nan)])
def test_settings_out_of_range(rate: float, gain: float) -> None:
    with pytest.raises(ValueError, match="SlidingMode needs a finite rate > 0 and a finite gain >= 0, got"):
        SlidingMode(rate=rate, gain=gain)
