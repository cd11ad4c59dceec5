"""Adaptive guidance: each sample ends at its own agreement, and calls end with the last sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.guidance import ClassifierFreeGuidance, Interval
from lightning_guide.guidance.combinations import RectifiedGradient, ReusedDifference, UntilAgreement
from lightning_guide.guidance.schedules import StepWindow
from lightning_guide.samplers import Euler, Heun, Sampler
from lightning_guide.seeds import SampleSeeds
from tests.branches import GRID, LEVELS, SAMPLERS, blobs, guided, start, walk
from tests.test_guidance_reuse import Labeled


def by_hand(threshold: float, weight: float, x: Tensor) -> tuple[Tensor, int]:
    """Return the sample (1, *) of the rule with Euler's method, written out, and its network calls."""
    good, _, bad = blobs(*x.shape[1:])
    ended, calls = False, 0
    for level, following in zip(LEVELS, LEVELS[1:], strict=False):
        sigma = torch.tensor(level, dtype=x.dtype)
        clean = good(x, sigma)
        calls += 1
        if not ended:
            negative = bad(x, sigma)
            calls += 1
            ended = bool(cosine_similarity(clean.flatten(), negative.flatten(), dim=0) > threshold)
            clean = negative + weight * (clean - negative)
        x = clean + following * (x - clean) / level
    return x, calls


def test_rule_written_out() -> None:
    x = start(3, 4, 4, batch=6) * torch.tensor([0.2, 0.5, 0.8, 1.0, 2.0, 50.0]).reshape(6, 1, 1, 1).double()
    expected = [by_hand(0.9, 2.0, row[None]) for row in x]
    denoiser = guided(blobs(3, 4, 4)[::2], [2.0], UntilAgreement(0.9))
    alone = [walk(Euler(GRID), denoiser, row[None]) for row in x]
    assert [each.evaluations for each in alone] == [calls for _, calls in expected]
    assert len({calls for _, calls in expected}) > 1, "all end at once"
    together = walk(Euler(GRID), denoiser, x)
    torch.testing.assert_close(together.x, torch.cat([row for row, _ in expected]), rtol=1e-10, atol=1e-10)
    assert together.evaluations == max(calls for _, calls in expected)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_thresholds_at_the_ends(sampler: Sampler) -> None:
    models, x = blobs(3, 4, 4), start(3, 4, 4)
    plain, never = (walk(sampler, guided(models, [2.0, 1.5], rule), x) for rule in (None, UntilAgreement(2.0)))
    assert torch.equal(plain.x, never.x) and plain.evaluations == never.evaluations
    first, window = (
        walk(sampler, guided(models, [2.0, 1.5], rule), x) for rule in (UntilAgreement(-1.0), StepWindow(0, 0.1))
    )
    assert torch.equal(first.x, window.x) and first.evaluations == window.evaluations


def test_nothing_is_found_where_nothing_is_guided() -> None:
    """Above the interval the negative is not called, and cannot agree."""
    x = start(3, 4, 4)
    inside = guided(blobs(3, 4, 4)[:2], [Interval(2.0, LEVELS[4], LEVELS[2])], UntilAgreement(-1.0))
    assert walk(Heun(GRID), inside, x).evaluations == 11 + 2


def test_a_negative_left_out_is_not_in_the_batch_of_the_positive() -> None:
    model = Labeled()
    adaptive = ClassifierFreeGuidance(2.0, positive=model, combination=UntilAgreement(0.5))
    end = walk(Euler(GRID), adaptive, start(2), torch.tensor([0, 1, 2]))
    assert model.batches == [6, 3, 3, 3, 3, 3] and end.evaluations == 7


def test_both_savings_nest() -> None:
    models, x = blobs(3, 4, 4)[:2], start(3, 4, 4)
    for rule in (
        UntilAgreement(2.0, combination=ReusedDifference(2)),
        ReusedDifference(2, combination=UntilAgreement(2.0)),
    ):
        nested, alone = (walk(Euler(GRID), guided(models, [2.0], each), x) for each in (rule, ReusedDifference(2)))
        assert torch.equal(nested.x, alone.x) and nested.evaluations == alone.evaluations == 9


def test_a_sample_ends_for_itself_in_reused_steps_too() -> None:
    models, seeds = [gaussian([1.0, 0.0], 0.3), gaussian([0.0, 0.5], 1.0)], SampleSeeds(0, range(8))
    x = Euler(12).initial(models[0], seeds).double()
    for every in (2, 3):
        rule = UntilAgreement(0.6, combination=ReusedDifference(every))
        together = walk(Euler(12), guided(models, [2.5], rule), x).x
        for i in range(len(x)):
            torch.testing.assert_close(walk(Euler(12), guided(models, [2.5], rule), x[i : i + 1]).x[0], together[i])


@pytest.mark.parametrize("watching", [UntilAgreement, ReusedDifference])
def test_a_rule_that_differentiates_cannot_be_watched(watching: type[UntilAgreement | ReusedDifference]) -> None:
    with pytest.raises(ValueError, match=f"{watching.__name__} cannot watch the calls of RectifiedGradient"):
        watching(combination=StepWindow(combination=RectifiedGradient()))


@pytest.mark.parametrize("threshold", [-1.1, float("nan")])
def test_thresholds_that_are_no_similarity(threshold: float) -> None:
    with pytest.raises(ValueError, match="UntilAgreement needs a cosine similarity of -1 or more as threshold, got"):
        UntilAgreement(threshold)
