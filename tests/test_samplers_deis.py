"""DEIS: orders of accuracy, identities, weights."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.noise import CustomGrid
from lightning_guide.samplers import DEIS, Euler
from lightning_guide.samplers.deis import noise_weights
from lightning_guide.seeds import SampleSeeds
from tests.sampler_orders import orders, walk

MIXTURE = GaussianMixture([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]], 0.2 * torch.eye(2).expand(3, 2, 2), [1, 2, 1])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_accuracy(order: int) -> None:
    assert orders(functools.partial(DEIS, order=order)) == pytest.approx([order] * 2, abs=0.3)


def test_first_order_is_euler() -> None:
    x = 5 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = CustomGrid([5.0, 2.0, 0.7, 0.1])
    torch.testing.assert_close(walk(DEIS(grid, order=1), MIXTURE, x), walk(Euler(grid), MIXTURE, x))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_integrate_polynomials_in_the_logarithm_exactly(count: int) -> None:
    times, end = [math.log(sigma) for sigma in (2.0, 3.1, 4.5, 9.0)[:count]], 0.8
    weights = noise_weights(end, times)
    s = torch.linspace(2.0, end, 200_001, dtype=torch.float64)
    for k in range(count):
        exact = float(torch.trapezoid(s.log() ** k, s))
        assert sum(w * t**k for w, t in zip(weights, times, strict=True)) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_one_network_call_a_step(steps: int) -> None:
    end = DEIS(steps, order=4).sample(MIXTURE, seeds=SampleSeeds(0, range(3)))
    assert end.evaluations == steps and bool(end.x.isfinite().all())


def test_orders_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="DEIS has order 1, 2, 3 or 4, got 5"):
        DEIS(8, order=5)
