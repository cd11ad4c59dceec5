"""Beta-CFG: the density over the steps against SciPy, the normalized difference against its formula."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from lightning_guide.guidance.combinations import BetaWeighted
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from tests.branches import GRID, LEVELS, combined, guided, mixtures, start, walk


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (1.0, 1.0), (1.0, 0.5), (7.5, 2.0), (200.0, 300.0)])
def test_density(a: float, b: float) -> None:
    places = [step / 32 for step in range(32)]
    assert [BetaWeighted(a=a, b=b).density(p) for p in places] == pytest.approx(beta.pdf(places, a, b), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_formula(shape: tuple[int, ...], gamma: float) -> None:
    sigma, x, (pos, *negs) = 0.7, torch.randn(6, *shape).double(), torch.randn(3, 6, *shape).double()
    height = beta.pdf(3 / 8, 2, 3)
    rows = []
    for row in range(6):
        eps = (x[row] - pos[row]) / sigma
        total = eps
        for weight, neg in zip((3.0, 0.4), negs, strict=True):
            e = (x[row] - neg[row]) / sigma
            total = total + (e + weight * height * (eps - e) / (eps - e).square().sum().sqrt() ** gamma - eps)
        rows.append(x[row] - sigma * total)
    out = combined(BetaWeighted(gamma=gamma), x, sigma, pos, (3.0, negs[0]), (0.4, negs[1]), step=3, steps=8)
    torch.testing.assert_close(out, torch.stack(rows))


def test_normalized_steps_have_the_same_length_for_any_difference() -> None:
    x, pos = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    neg = pos + torch.tensor([1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6]).double().reshape(-1, 1, 1, 1) * torch.randn_like(x)
    out = combined(BetaWeighted(), x, 0.7, pos, (3.0, neg), step=3, steps=8)
    lengths = ((out - neg) / 0.7).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 3 * beta.pdf(3 / 8, 2, 3)), rtol=1e-6, atol=1e-6)


def test_the_first_step_follows_the_negative() -> None:
    x, pos, neg = torch.randn(3, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(combined(BetaWeighted(), x, 0.7, pos, (3.0, neg), step=0, steps=8), neg)
    flat = combined(BetaWeighted(a=1.0, b=3.0, gamma=0.0), x, 0.7, pos, (2.0, neg), step=0, steps=8)
    torch.testing.assert_close(flat, neg + 2 * 3 * (pos - neg))  # the density of Beta(1, 3) starts at 3


def trapezoid(x: Tensor) -> Tensor:
    """Heun by hand; both stages of a step have its height."""
    pos, neg = mixtures()[:2]

    def slope(x: Tensor, t: float, height: float) -> Tensor:
        level = torch.tensor(t, dtype=x.dtype)
        eps, e = ((x - model(x, level)) / t for model in (pos, neg))
        return e + 2.0 * height * (eps - e) / (eps - e).norm(dim=1, keepdim=True)

    steps = len(LEVELS) - 1
    for i, (t, t_next) in enumerate(zip(LEVELS, LEVELS[1:], strict=False)):
        height = beta.pdf(i / steps, 2, 3)
        first = slope(x, t, height)
        ahead = x + (t_next - t) * first
        x = ahead if t_next == 0 else x + (t_next - t) * (first + slope(ahead, t_next, height)) / 2
    return x


def test_the_height_is_that_of_the_step_in_both_stages() -> None:
    x = start(2, batch=5)
    end = walk(Heun(GRID), guided(mixtures()[:2], [2.0], BetaWeighted()), x).x
    torch.testing.assert_close(end, trapezoid(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", [Euler(GRID), DPMSolver2M(GRID)], ids=lambda s: type(s).__name__)
def test_a_density_that_grows_without_bound_at_the_end(sampler: Sampler) -> None:
    rule = BetaWeighted(a=2.0, b=0.5, gamma=0.5)
    assert bool(walk(sampler, guided(mixtures(), [1.5, 1.2], rule), start(2)).x.isfinite().all())


@pytest.mark.parametrize("wrong", [{"a": 0.5}, {"b": 0.0}, {"gamma": -0.1}, {"gamma": 1.1}, {"a": float("inf")}])
def test_shapes_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="BetaWeighted needs a >= 1, b > 0 and gamma between 0 and 1"):
        BetaWeighted(**wrong)
