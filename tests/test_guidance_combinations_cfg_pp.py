"""CFG++ against its published updates, and its two ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction
from lightning_guide.guidance import Interval, Main, StepWindow, WeightSchedule
from lightning_guide.guidance.combinations import Combination, Plain, Rescale, UntilAgreement
from lightning_guide.guidance.negatives import RenoiseWithNegative
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from tests.branches import GRID, LEVELS, SAMPLERS, constant_branch, guided, mixtures, start, trajectory_at, walk

Both = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(x, sigma) -> (D_lambda, D_neg)."""


def both(weight: float) -> Both:
    pos, neg = mixtures()[:2]

    def at(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        level = torch.tensor(t, dtype=x.dtype)
        good, bad = pos(x, level), neg(x, level)
        return bad + weight * (good - bad), bad

    return at


def euler(at: Both, x: Tensor) -> Tensor:
    for t, t_next in zip(LEVELS, LEVELS[1:], strict=False):
        line, bad = at(x, t)
        x = line + t_next * (x - bad) / t
    return x


def heun(at: Both, x: Tensor) -> Tensor:
    """The clean estimate jumps once a step; the trapezoidal rule follows the negative's noise."""
    for t, t_next in zip(LEVELS, LEVELS[1:], strict=False):
        line, bad = at(x, t)
        slope, base = (x - bad) / t, x + line - bad
        x = base + (t_next - t) * slope
        if t_next > 0:
            x = base + (t_next - t) * (slope + (x - at(x, t_next)[1]) / t_next) / 2
    return x


def multistep(at: Both, x: Tensor) -> Tensor:
    """The published 2M update; the history is D_neg, and the first and the last step have none."""
    before, h_before = None, 0.0
    for t, t_next in zip(LEVELS, LEVELS[1:], strict=False):
        line, bad = at(x, t)
        if t_next == 0:
            return line
        h = math.log(t / t_next)
        step = line - math.exp(-h) * bad + math.exp(-h) * x
        if before is not None:
            step = step - (math.exp(-h) - 1) * (line - before) / (2 * h_before / h)
        x, before, h_before = step, bad, h
    return x


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize(
    ("sampler", "update"), [(Euler(GRID), euler), (Heun(GRID), heun), (DPMSolver2M(GRID), multistep)]
)
def test_published_updates(sampler: Sampler, update: Callable[[Both, Tensor], Tensor], weight: float) -> None:
    x = start(2, batch=5)
    end = walk(sampler, guided(mixtures()[:2], [weight], RenoiseWithNegative()), x).x
    torch.testing.assert_close(end, update(both(weight), x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_weight_zero_samples_the_negative_to_the_bit_and_the_positive_is_not_called(sampler: Sampler) -> None:
    neg, x = mixtures()[1], start(2, batch=5)
    uncallable: Denoiser = Main()
    alone = walk(sampler, neg, x)
    end = walk(sampler, guided([uncallable, neg, uncallable], [0.0, 1.0], RenoiseWithNegative()), x)
    assert torch.equal(end.x, alone.x) and end.evaluations == alone.evaluations


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_weight_one_still_evaluates_the_negative(sampler: Sampler) -> None:
    models, x = mixtures()[:2], start(2, batch=5)
    alone, end = walk(sampler, models[0], x), walk(sampler, guided(models, [1.0], RenoiseWithNegative()), x)
    assert end.evaluations == 2 * alone.evaluations and (end.x - alone.x).abs().max() > 0.01


@pytest.mark.parametrize(
    ("weight", "rule"),
    [
        (Interval(0.6, LEVELS[1], LEVELS[0]), RenoiseWithNegative()),
        (0.6, StepWindow(0, 0.1, RenoiseWithNegative())),
        (0.6, Rescale(0.0, combination=StepWindow(0, 0.1, RenoiseWithNegative()))),
        (0.6, UntilAgreement(-1.0, combination=RenoiseWithNegative())),
    ],
)
def test_where_guidance_has_ended_the_positive_is_alone_with_its_own_noise(
    weight: float | WeightSchedule, rule: Combination
) -> None:
    models, x = mixtures()[:2], start(2, batch=5)
    line, bad = both(0.6)(x, LEVELS[0])
    expected = line + LEVELS[1] * (x - bad) / LEVELS[0]
    for t, t_next in zip(LEVELS[1:], LEVELS[2:], strict=False):
        expected = Prediction(models[0](expected, torch.tensor(t))).step(expected, *torch.tensor([t, t_next]))
    end = walk(Euler(GRID), guided(models, [weight], rule), x)
    torch.testing.assert_close(end.x, expected, rtol=1e-5, atol=1e-5)
    assert end.evaluations == len(LEVELS)


def test_clean_is_the_plain_line_and_noise_the_first_negative() -> None:
    """With the line's own noise it would be the plain rule."""
    x, pos, *negs, noise = torch.randn(5, 6, 3, 4, 5, dtype=torch.float64)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    for first, weight in (
        (constant_branch(negs[0]), 0.6),
        (constant_branch(negs[0], noise), 0.6),
        (constant_branch(negs[0]), 0.0),
    ):
        branches = (constant_branch(pos), [(weight, first), (1.4, constant_branch(negs[1]))])
        out, plain = (
            rule.combine(*branches, x, sigma, trajectory_at(x, 0.7)) for rule in (RenoiseWithNegative(), Plain())
        )
        assert torch.equal(out.clean, plain.clean) and out.noise is not None
        torch.testing.assert_close(out.clean, pos + (weight - 1) * (pos - negs[0]) + 0.4 * (pos - negs[1]))
        torch.testing.assert_close(out.noise, first(x, sigma).direction(x, sigma))
    only, line = (
        rule.combine(constant_branch(pos), [(0.6, constant_branch(negs[0]))], x, sigma, trajectory_at(x, 0.7))
        for rule in (RenoiseWithNegative(), Plain())
    )
    below = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(Prediction(only.clean).step(x, sigma, below), line.step(x, sigma, below))
