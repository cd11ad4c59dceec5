"""Self-consuming Gaussian fits against closed forms: chi-square, digamma, trigamma."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.special import digamma, polygamma

from scripts.studies.sims.gaussian_loop import fitted, self_consuming


def bias(count: int) -> float:
    """Return E ln of a maximum likelihood variance from `count` points of variance 1: ln(chi^2_(n-1) / n)."""
    return float(digamma((count - 1) / 2) + math.log(2 / count))


def start(replicas: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(replicas).double(), torch.ones(replicas).double()


@pytest.mark.parametrize(("count", "expected"), [(50, -0.0406), (200, -0.01)])
def test_a_fit_shrinks_by_two_over_n(generator: torch.Generator, count: int, expected: float) -> None:
    _, variance = fitted(start(20_000), count, generator)
    assert bias(count) == pytest.approx(expected, abs=5e-4)
    error = math.sqrt(polygamma(1, (count - 1) / 2) / 20_000)
    assert abs(float(variance.log().mean()) - bias(count)) < 4 * error


@pytest.mark.parametrize(
    ("n_r", "n_s", "omega"), [(50, 50, 0.0), (50, 50, 0.5), (50, 50, 1.0), (50, 200, 1.0), (50, 200, 4.0)]
)
def test_omega_n_s_over_n_r_cancels_the_shrinkage(generator: torch.Generator, n_r: int, n_s: int, omega: float) -> None:
    """E ln V_SIMS = ln V - 2 / n_r + 2 omega / n_s to first order, exactly b(n_r) - omega b(n_s)."""
    base = fitted(start(20_000), n_r, generator)
    _, auxiliary = fitted(base, n_s, generator)
    log_variance = (1 + omega) * base[1].log() - omega * auxiliary.log()
    exact = bias(n_r) - omega * bias(n_s)
    assert exact == pytest.approx(-2 / n_r + 2 * omega / n_s, abs=1.5e-3)
    error = math.sqrt((polygamma(1, (n_r - 1) / 2) + omega**2 * polygamma(1, (n_s - 1) / 2)) / 20_000)
    assert abs(float(log_variance.mean()) - exact) < 4 * error


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
def test_drift_and_diffusion_of_the_synthetic_loop(generator: torch.Generator, omega: float) -> None:
    """ln V is a random walk of steps d_r - omega d_s: drift (1 - omega) b(n), variance (1 + omega^2) trigamma."""
    _, variance = self_consuming(100, 1000, generator, omega=omega)
    log_variance = variance.log()
    for generation in (10, 50, 100):
        step = (1 + omega**2) * float(polygamma(1, 99 / 2))
        now = log_variance[generation]
        assert abs(float(now.mean()) - generation * (1 - omega) * bias(100)) < 4 * math.sqrt(generation * step / 1000)
        assert float(now.var()) == pytest.approx(generation * step, rel=0.2)


def test_published_medians(generator: torch.Generator) -> None:
    """Median standard deviations after 10, 50 and 100 generations of 100 points, known to 3 to 8 %."""
    at = [10, 50, 100]

    def medians(**options: Any) -> list[float]:
        _, variance = self_consuming(100, 1000, generator, **options)
        return variance[at].sqrt().median(1).values.tolist()

    assert medians() == pytest.approx([0.900, 0.595, 0.366], rel=0.1)
    assert medians(omega=1.0) == pytest.approx([1.0, 1.0, 1.0], rel=0.16)
    assert medians(augmented=True) == pytest.approx([0.990, 0.986, 0.986], abs=0.025)
    assert medians(augmented=True, omega=1.0) == pytest.approx([1.002, 1.004, 0.998], abs=0.025)


def test_too_few_points_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="count >= 2, got 3, 2 and 1"):
        self_consuming(3, 2, generator, count=1)
