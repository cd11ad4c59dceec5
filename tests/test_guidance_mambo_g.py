"""MAMBO-G against its formula in the velocities of a rectified flow."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_guide.guidance.combinations import MagnitudeAware
from tests.branches import combined


@pytest.mark.parametrize("alpha", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_formula(shape: tuple[int, ...], sigma: float, alpha: float) -> None:
    x, pos, *negs = torch.randn(4, 6, *shape, dtype=torch.float64)
    rows = []
    for row in range(6):
        v = (x[row] - pos[row]) / sigma - pos[row]
        total = v
        for weight, neg in zip((3.0, 0.4), negs, strict=True):
            u = (x[row] - neg[row]) / sigma - neg[row]
            ratio = (v - u).square().sum().sqrt() / u.square().sum().sqrt()
            weight = 1 + (weight - 1) * math.exp(-alpha * float(ratio))
            total = total + (u + weight * (v - u) - v)
        rows.append((x[row] - sigma * total) / (1 + sigma))
    out = combined(MagnitudeAware(alpha=alpha), x, sigma, pos, (3.0, negs[0]), (0.4, negs[1]))
    torch.testing.assert_close(out, torch.stack(rows))


def test_a_zero_negative_or_a_large_alpha_leaves_the_positive() -> None:
    x, pos, neg = torch.randn(3, 6, 4, dtype=torch.float64)
    zero = x / 1.5  # v_neg = 0, up to rounding: the ratio is unbounded
    torch.testing.assert_close(combined(MagnitudeAware(), x, 0.5, pos, (3.0, zero)), pos)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(combined(MagnitudeAware(), zero, 0.5, pos, (3.0, zero)), pos)
    torch.testing.assert_close(combined(MagnitudeAware(alpha=0.0), zero, 0.5, pos, (3.0, zero)), 3 * pos)
    torch.testing.assert_close(combined(MagnitudeAware(alpha=1e6), x, 0.5, pos, (3.0, neg)), pos)


@pytest.mark.parametrize("alpha", [-1.0, math.inf, math.nan])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="MagnitudeAware needs a finite alpha >= 0"):
        MagnitudeAware(alpha=alpha)
