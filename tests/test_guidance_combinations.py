"""Properties of every combination: neutral setting, weight 1, independent rows, new state, no overflow."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction
from lightning_guide.guidance import CosineWeight, Interval, Main
from lightning_guide.guidance.combinations import (
    AdaptiveProjection,
    BetaWeighted,
    Combination,
    FrequencyDecoupled,
    MagnitudeAware,
    PairCombination,
    PerpendicularNegatives,
    Plain,
    RectifiedGradient,
    Rescale,
    ReusedDifference,
    SlidingMode,
    Tangential,
    UntilAgreement,
    ZeroStar,
)
from lightning_guide.guidance.negatives import RenoiseWithNegative
from lightning_guide.samplers import Heun, Sampler
from lightning_guide.utils.recipe import build
from tests.branches import (
    GRID,
    LEVELS,
    SAMPLERS,
    blobs,
    combined,
    constant_branch,
    guided,
    mixtures,
    start,
    trajectory_at,
    walk,
)

ADAPTIVE = AdaptiveProjection(eta=0.2, norm_threshold=0.5, momentum=-0.5)
NEUTRAL: dict[str, tuple[Combination, Combination]] = {
    "APG": (ADAPTIVE, AdaptiveProjection(eta=1.0)),
    "FDG": (FrequencyDecoupled([0.2, 0.6, 1.0]), FrequencyDecoupled([1.0, 1.0, 1.0])),
    "Zero*": (ZeroStar(), ZeroStar(zero_steps=0, alpha=1.0)),
    "TCFG": (Tangential(), Tangential(strength=0.0)),
    "MAMBO-G": (MagnitudeAware(alpha=2.0), MagnitudeAware(alpha=0.0)),
    "beta": (BetaWeighted(), BetaWeighted(a=1.0, b=1.0, gamma=0.0)),
    "REG": (RectifiedGradient(), RectifiedGradient(strength=0.0)),
    "rescale": (Rescale(), Rescale(0.0)),
    "reuse": (ReusedDifference(3), ReusedDifference(1)),
    "AG": (UntilAgreement(0.9), UntilAgreement(2.0)),
    "SMC": (SlidingMode(gain=0.05), SlidingMode(gain=0.0)),
}
RULES: dict[str, Combination] = {name: rule for name, (rule, _) in NEUTRAL.items()} | {
    "rescaled APG": Rescale(0.5, combination=ADAPTIVE),
    "rescaled CFG++": Rescale(0.5, combination=RenoiseWithNegative()),
    "CFG++": RenoiseWithNegative(),
    "Perp-Neg": PerpendicularNegatives(),
}
SHAPES = {"points": (2,), "sequence": (5, 3), "images": (3, 6, 7)}
ALL = [(name, shape) for name in RULES for shape in SHAPES if name != "FDG" or shape == "images"]
OFF = [name for name in RULES if "CFG++" not in name]  # CFG++ evaluates its negative at every weight
each_rule = pytest.mark.parametrize(("name", "shape"), ALL)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
UNCALLABLE = Main()  # a reference raises when it is called


@each_sampler
@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shape in ALL if name in NEUTRAL])
def test_neutral_setting_is_the_plain_rule_with_two_negatives(name: str, shape: str, sampler: Sampler) -> None:
    models, x = blobs(*SHAPES[shape]), start(*SHAPES[shape])
    plain = walk(sampler, guided(models, [2.5, 1.5]), x)
    rule, neutral = (walk(sampler, guided(models, [2.5, 1.5], each), x) for each in NEUTRAL[name])
    torch.testing.assert_close(neutral.x, plain.x, rtol=1e-11, atol=1e-11)
    assert neutral.evaluations == plain.evaluations
    assert (rule.x - plain.x).abs().max() > 1e-3, "the rule has no effect"


@each_sampler
@pytest.mark.parametrize("name", OFF)
def test_weight_one_is_the_positive_to_the_bit_and_no_negative_is_called(name: str, sampler: Sampler) -> None:
    (model, *_), x = blobs(3, 6, 7), start(3, 6, 7)
    off = Interval(3.0, 50.0, 80.0)
    alone = walk(sampler, model, x)
    for weights in ([1.0, 1], [off, CosineWeight(1.0)]):
        switched = walk(sampler, guided([model, UNCALLABLE, UNCALLABLE], weights, RULES[name]), x)
        assert torch.equal(switched.x, alone.x) and switched.evaluations == alone.evaluations
    with pytest.raises(ValueError, match="Main is a reference"):
        last = trajectory_at(x, 1.0, step=5, steps=6)
        guided([model, UNCALLABLE], [1.01], RULES[name]).start(last)(x, torch.tensor(1.0), None)


@pytest.mark.parametrize("name", OFF)
def test_negatives_cost_evaluations_only_inside_the_interval(name: str) -> None:
    models, x = blobs(3, 6, 7)[:2], start(3, 6, 7)
    inside = guided(models, [Interval(2.0, LEVELS[4], LEVELS[2])], RULES[name])
    counts = [trajectory.evaluations for trajectory in Heun(GRID).steps(inside, x, seeds=trajectory_at(x, 1.0).seeds)]
    spent = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    within = 3 if name == "REG" else 2
    second = 1 if name in ("reuse", "AG") else within  # the first saves its call, the other has agreed
    assert spent == [2, 2, 2 * within, 2 * second, 2, 1]


@each_rule
def test_a_sample_does_not_depend_on_its_batch_mates(name: str, shape: str) -> None:
    denoiser = guided(blobs(*SHAPES[shape]), [0.7, 1.5], RULES[name])
    x = start(*SHAPES[shape]) * torch.tensor([0.1, 1.0, 30.0]).reshape(-1, *[1] * len(SHAPES[shape]))
    together = walk(Heun(GRID), denoiser, x).x
    alone = torch.cat([walk(Heun(GRID), denoiser, row[None]).x for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)


@each_sampler
@pytest.mark.parametrize("name", RULES)
def test_every_trajectory_has_a_fresh_state(name: str, sampler: Sampler) -> None:
    denoiser, x = guided(blobs(3, 6, 7), [2.0, 1.5], RULES[name]), start(3, 6, 7)
    assert torch.equal(walk(sampler, denoiser, x).x, walk(sampler, denoiser, x).x)
    halfway = sampler.steps(denoiser, x, seeds=trajectory_at(x, 1.0).seeds)
    other = walk(sampler, denoiser, x + 1)
    for _ in range(4):
        next(halfway)
    assert torch.equal(walk(sampler, denoiser, x + 1).x, other.x), "a trajectory under way shows in another"


@each_rule
def test_equal_branches_leave_the_positive(name: str, shape: str) -> None:
    x, pos = torch.randn(2, 3, *SHAPES[shape], dtype=torch.float64)
    for clean in (pos, torch.zeros_like(pos), 1e-150 * pos):
        out = combined(RULES[name], x, 0.7, clean, (3.0, clean), (0.2, clean.clone()), step=1, steps=4)
        torch.testing.assert_close(out, clean, rtol=1e-12, atol=1e-15 * float(x.abs().max()))
    zero = torch.zeros_like(x)
    assert bool(combined(RULES[name], zero, 0.7, zero, (3.0, zero), step=1, steps=4).isfinite().all())


def test_equal_branches_leave_the_positive_along_a_trajectory() -> None:
    good, x = mixtures()[0], start(2)
    for name, rule in RULES.items():
        if name not in ("FDG", "Zero*"):
            same = walk(Heun(GRID), guided([good, good], [3.0], rule), x)
            torch.testing.assert_close(same.x, walk(Heun(GRID), good, x).x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in RULES if name != "REG"])
def test_norms_of_half_precision_neither_overflow_nor_vanish(name: str, dtype: torch.dtype) -> None:
    """Squares of these sum to 1e8, or to 1e-9 each: beyond float16 on both sides."""
    for size, distance in ((300.0, 100.0), (1.0, 1e-3)):
        clean = size * torch.randn(2, 3, 16, 16, dtype=torch.float64)
        branches = [clean, clean + distance * torch.randn_like(clean), clean - distance * torch.randn_like(clean)]
        x = clean + 2 * torch.randn_like(clean)
        x, pos, one, two = (each.to(dtype) for each in (x, *branches))
        out = combined(RULES[name], x, 2.0, pos, (2.0, one), (1.5, two), step=1, steps=4)
        assert out.dtype == dtype
        exact = combined(
            RULES[name], x.double(), 2.0, pos.double(), (2.0, one.double()), (1.5, two.double()), step=1, steps=4
        )
        bits = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), exact, rtol=bits, atol=3 * bits * (size + 3 * distance))


def test_half_precision_of_a_gradient() -> None:
    models = blobs(3, 16, 16)[:2]
    x = 200 * torch.randn(2, 3, 16, 16)
    low = guided(models, [2.0], RectifiedGradient())(x.half(), torch.tensor(2.0).half())
    exact = guided(models, [2.0], RectifiedGradient())(x.half().double(), torch.tensor(2.0).double())
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.double(), exact, rtol=3e-3, atol=0.1)


@pytest.mark.parametrize("name", RULES)
def test_a_recipe_rebuilds_the_rule(name: str) -> None:
    denoiser, x = guided(blobs(3, 6, 7), [2.0, 1.5], RULES[name]), start(3, 6, 7)
    rebuilt = build(RULES[name].recipe)
    assert rebuilt.recipe == RULES[name].recipe
    again = guided(blobs(3, 6, 7), [2.0, 1.5], rebuilt)
    assert torch.equal(walk(Heun(GRID), again, x).x, walk(Heun(GRID), denoiser, x).x)


@pytest.mark.parametrize("which", ["positive", "negative", "second", "all"])
@pytest.mark.parametrize("name", [name for name in NEUTRAL if name != "REG"])
def test_separate_noise_direction_is_combined_by_the_plain_rule(name: str, which: str) -> None:
    x, *rest = torch.randn(7, 3, 3, 6, 7, dtype=torch.float64)
    cleans, noises, sigma = rest[:3], rest[3:], torch.tensor(0.6, dtype=torch.float64)
    heard = {"positive": [0], "negative": [1], "second": [2], "all": [0, 1, 2]}[which]
    pos, one, two = (constant_branch(cleans[i], noises[i] if i in heard else None) for i in range(3))

    def said(rule: Combination) -> Prediction:
        return copy.deepcopy(rule).combine(pos, [(2.0, one), (1.5, two)], x, sigma, trajectory_at(x, 0.6))

    plain, neutral = said(Plain()), said(NEUTRAL[name][1])
    assert plain.noise is not None and neutral.noise is not None
    torch.testing.assert_close(neutral.clean, plain.clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(neutral.noise, plain.noise, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["APG", "Zero*", "TCFG", "MAMBO-G", "beta", "SMC"])
def test_noise_changes_by_minus_the_push_over_sigma(name: str) -> None:
    rule = RULES[name]
    assert isinstance(rule, PairCombination)
    x, clean, neg, noise = torch.randn(4, 3, 5, dtype=torch.float64)
    sigma = torch.tensor(0.6, dtype=torch.float64)
    branches = constant_branch(clean, noise), [(2.0, constant_branch(neg))]
    out = copy.deepcopy(rule).combine(*branches, x, sigma, trajectory_at(x, 0.6, step=1, steps=4))
    beyond = noise - (x - clean) / sigma
    assert out.noise is not None and not torch.allclose(out.clean, clean)
    torch.testing.assert_close(out.noise, (x - out.clean) / sigma + 2 * beyond)


def test_noise_stays_implied_without_a_separate_direction() -> None:
    x, pos, neg = torch.randn(3, 3, 3, 6, 7)
    for name, rule in RULES.items():
        if name not in ("CFG++", "rescaled CFG++", "REG"):
            branches = constant_branch(pos), [(2.0, constant_branch(neg))]
            out = copy.deepcopy(rule).combine(*branches, x, torch.tensor(0.6), trajectory_at(x, 0.6))
            assert out.noise is None, name


GRADIENTS = [rule for name, rule in RULES.items() if name != "REG"] + [rule for _, rule in NEUTRAL.values()]


def last_step(rule: Combination, models: Sequence[Denoiser], x: Tensor) -> Tensor:
    at = trajectory_at(x, 0.7, step=2, steps=4)
    return guided(models, [2.0, 1.5], rule).start(at)(x, torch.tensor(0.7).double(), None).clean


@pytest.mark.parametrize("rule", GRADIENTS, ids=lambda each: type(each).__name__)
def test_gradients_flow_through_the_rule(rule: Combination) -> None:
    models, x = blobs(1, 5, 5), start(1, 5, 5, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: last_step(rule, models, x), x, fast_mode=True)


@pytest.mark.parametrize("rule", GRADIENTS, ids=lambda each: type(each).__name__)
def test_gradients_are_finite_where_the_branches_agree(rule: Combination) -> None:
    """At a difference of 0 norms have no derivative. This is the case of a row without a label in each step."""
    model, x = blobs(1, 5, 5)[0], start(1, 5, 5, batch=1).float().requires_grad_()
    (gradient,) = torch.autograd.grad(last_step(rule, [model] * 3, x).sum(), x)
    assert gradient.abs().max() < 10
