"""End to end: guided sampling of isotropic Gaussians is a scalar linear equation for most rules.

With D_pos = a x and D_neg = b x every rule here gives D = k(sigma) x, so that x(0) = x(S) exp(-integral of
(1 - k) / sigma over (0, S)). The gains k are written down by hand and integrated by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad

from lightning_guide.guidance.combinations import (
    AdaptiveProjection,
    Combination,
    FrequencyDecoupled,
    MagnitudeAware,
    Plain,
    RectifiedGradient,
    Rescale,
    Tangential,
    ZeroStar,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from tests.branches import Blob, guided, walk

POS, NEG, WEIGHT = 0.5, 0.8, 2.5

Gain = Callable[[float, float, float], float]
"""(a, b, sigma) -> k."""


def velocities(a: float, b: float, s: float) -> tuple[float, float]:
    """v = eps - D for D = a x and for D = b x, in units of x."""
    return (1 - a) / s - a, (1 - b) / s - b


def zero_star(a: float, b: float, s: float) -> float:
    v, u = velocities(a, b, s)
    return a - s / (1 + s) * (WEIGHT - 1) * (v - 0.8 * u)


def magnitude_aware(a: float, b: float, s: float) -> float:
    v, u = velocities(a, b, s)
    return a + (WEIGHT - 1) * math.exp(-0.7 * abs(v - u) / abs(u)) * (a - b)


def plain(a: float, b: float, s: float) -> float:
    return b + WEIGHT * (a - b)


CASES: list[tuple[Combination, Gain]] = [
    (Plain(), plain),
    (AdaptiveProjection(eta=0.3), lambda a, b, s: a + (WEIGHT - 1) * 0.3 * (a - b)),
    (AdaptiveProjection(eta=0.0), lambda a, b, s: a),
    (FrequencyDecoupled([0.4, 0.4]), lambda a, b, s: a + (WEIGHT - 1) * 0.4 * (a - b)),
    (ZeroStar(zero_steps=0, alpha=0.8), zero_star),
    (ZeroStar(zero_steps=0), lambda a, b, s: a),
    (Tangential(), plain),
    (MagnitudeAware(alpha=0.7), magnitude_aware),
    (RectifiedGradient(), lambda a, b, s: a + (WEIGHT - 1) * a * (a - b)),
    (RectifiedGradient(strength=0.5), lambda a, b, s: a + (WEIGHT - 1) * (1 + a) / 2 * (a - b)),
    (Rescale(0.6), lambda a, b, s: 0.6 * a + 0.4 * plain(a, b, s)),
]


@pytest.mark.parametrize(("rule", "gain"), CASES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [(Heun, 60, 5e-3), (DPMSolver2M, 100, 5e-3), (Euler, 100, 4e-2)]
)
def test_samples_follow_the_linear_equation(
    rule: Combination, gain: Gain, sampler: type[Sampler], steps: int, tolerance: float
) -> None:
    grid = KarrasGrid(steps, sigma_max=20.0, sigma_min=0.001)

    def slope(s: float) -> float:
        return (1 - gain(POS / (POS + s**2), NEG / (NEG + s**2), s)) / s

    integral, error = quad(slope, 1e-9, 20.0, limit=400)
    assert error < 1e-6
    models = [Blob((1, 3, 4), 0.0, POS), Blob((1, 3, 4), 0.0, NEG)]
    x = 20 * torch.randn(2, 1, 3, 4, dtype=torch.float64)
    end = walk(sampler(grid), guided(models, [WEIGHT], rule), x).x
    torch.testing.assert_close(end, math.exp(-integral) * x, rtol=tolerance, atol=1e-9)
