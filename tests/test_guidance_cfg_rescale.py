"""Rescale against the paper's formula, around the plain rule and around others."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.guidance.combinations import (
    AdaptiveProjection,
    Combination,
    FrequencyDecoupled,
    Plain,
    RectifiedGradient,
    Rescale,
    ZeroStar,
)
from lightning_guide.guidance.negatives import RenoiseWithNegative
from lightning_guide.samplers import Heun, Sampler
from tests.branches import GRID, SAMPLERS, blobs, combined, constant_branch, guided, start, trajectory_at, walk

INNER = [
    Plain(),
    AdaptiveProjection(eta=0.2, momentum=-0.5),
    FrequencyDecoupled([0.5, 1.0]),
    RectifiedGradient(),
    RenoiseWithNegative(),
    ZeroStar(),
]


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("inner", INNER[:3], ids=lambda each: type(each).__name__)
def test_formula(inner: Combination, phi: float) -> None:
    x, pos, first, second = torch.randn(4, 6, 3, 4, 5, dtype=torch.float64)
    line = combined(inner, x, 0.7, pos, (3.0, first), (0.4, second))
    rows = [phi * g * p.std() / g.std() + (1 - phi) * g for p, g in zip(pos, line, strict=True)]
    out = combined(Rescale(phi, combination=inner), x, 0.7, pos, (3.0, first), (0.4, second))
    torch.testing.assert_close(out, torch.stack(rows))
    if phi == 1:
        torch.testing.assert_close(out.flatten(1).std(1), pos.flatten(1).std(1))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inner", INNER, ids=lambda each: type(each).__name__)
def test_phi_zero_is_the_inner_rule_to_the_bit(inner: Combination, sampler: Sampler) -> None:
    models, x = blobs(3, 6, 7), start(3, 6, 7)
    bare, wrapped = (
        walk(sampler, guided(models, [0.6, 1.5], rule), x) for rule in (inner, Rescale(0.0, combination=inner))
    )
    assert torch.equal(bare.x, wrapped.x) and bare.evaluations == wrapped.evaluations
    rescaled = walk(sampler, guided(models, [0.6, 1.5], Rescale(0.7, combination=inner)), x)
    assert (rescaled.x - bare.x).abs().max() > 1e-3 and rescaled.evaluations == bare.evaluations


def test_the_positive_is_evaluated_once_and_not_for_the_steps_that_need_none() -> None:
    models, x = blobs(3, 6, 7)[:2], start(3, 6, 7)
    end = walk(Heun(GRID), guided(models, [2.0], Rescale(combination=ZeroStar(zero_steps=2))), x)
    assert end.evaluations == 2 * (2 * (6 - 2) - 1)


def test_data_without_a_spread() -> None:
    """One number each, or all values equal: the ratio is 0 / 0, with no rescaling."""
    for shape in ((1,), (1, 1, 1), (3, 2, 2)):
        x, pos, neg = (value * torch.ones(4, *shape, dtype=torch.float64) for value in (1.0, 0.5, 0.2))
        out = combined(Rescale(1.0), x, 0.7, pos, (3.0, neg))
        torch.testing.assert_close(out, pos + 2 * (pos - neg))


def test_separate_noise_direction_is_unchanged() -> None:
    x, pos, neg, noise = torch.randn(4, 6, 3, 4, 5, dtype=torch.float64)
    branches = (constant_branch(pos, noise), [(2.0, constant_branch(neg, 0.5 * noise))])
    level = torch.tensor(0.7).double()
    inner, outer = (rule.combine(*branches, x, level, trajectory_at(x, 0.7)) for rule in (Plain(), Rescale(0.7)))
    assert inner.noise is not None and outer.noise is not None
    assert torch.equal(inner.noise, outer.noise) and not torch.allclose(inner.clean, outer.clean)


@pytest.mark.parametrize("phi", [-0.1, 1.1])
def test_phi_out_of_range(phi: float) -> None:
    with pytest.raises(ValueError, match="Rescale needs phi between 0 and 1"):
        Rescale(phi)
