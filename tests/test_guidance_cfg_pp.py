"""CFG++ as a guidance: labels, weights, recipe."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import (
    CosineWeight,
    Interval,
    PowerWeight,
    SNRWeight,
    TableWeight,
    Unconditional,
    WeightSchedule,
)
from lightning_guide.guidance.negatives import RenoiseWithNegative
from lightning_guide.guidance.negatives.cfg_pp import ClassifierFreeGuidancePP
from lightning_guide.samplers import Euler, Sampler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import build
from tests.branches import GRID, LEVELS, SAMPLERS, start, walk

MEANS = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]])
MODEL = GaussianMixture(MEANS, 0.2 * torch.eye(2).expand(3, 2, 2), [1.0, 2.0, 1.0], labels=[0, 1, 2])
LABELS = torch.tensor([0, 1, 2, -1])


@pytest.mark.parametrize("weight", [0.6, 1.0])
def test_euler_renoises_with_the_unconditional_model(weight: float) -> None:
    x = first = start(2, batch=4)
    for t, t_next in zip(LEVELS, LEVELS[1:], strict=False):
        level = torch.tensor(t, dtype=x.dtype)
        cond, uncond = MODEL(x, level, LABELS), MODEL(x, level)
        x = uncond + weight * (cond - uncond) + t_next * (x - uncond) / t
    end = walk(Euler(GRID), ClassifierFreeGuidancePP(weight, positive=MODEL), first, LABELS)
    torch.testing.assert_close(end.x, x, rtol=1e-10, atol=1e-10)
    assert end.evaluations == 2 * 6


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_weight_zero_samples_without_condition(sampler: Sampler) -> None:
    x = start(2, batch=4)
    off, alone = (
        walk(sampler, each, x, LABELS) for each in (ClassifierFreeGuidancePP(0.0, positive=MODEL), Unconditional(MODEL))
    )
    assert torch.equal(off.x, alone.x) and off.evaluations == alone.evaluations


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_without_labels_the_result_is_unguided(sampler: Sampler) -> None:
    x = start(2, batch=4)
    end, alone = (walk(sampler, each, x, LABELS) for each in (ClassifierFreeGuidancePP(positive=MODEL), MODEL))
    torch.testing.assert_close(end.x[3], alone.x[3])
    assert (end.x - alone.x)[:3].abs().amax(1).min() > 1e-3


def test_default_weight_schedules_and_recipe() -> None:
    guidance = ClassifierFreeGuidancePP(positive=MODEL)
    assert guidance.weights == [0.6] and isinstance(guidance.combination, RenoiseWithNegative)
    x, level, other = torch.randn(4, 2).double(), torch.tensor(0.7), gaussian([0.1, 0.3], torch.eye(2).tolist())
    inside = ClassifierFreeGuidancePP(Interval(0.3, 0.5, 1.0), positive=MODEL, unconditional=other)
    rebuilt = build(inside.recipe)
    bad = other(x, level)
    for each in (inside, rebuilt):
        torch.testing.assert_close(each(x, level, LABELS), bad + 0.3 * (MODEL(x, level, LABELS) - bad))


class Late(WeightSchedule):
    """1.2 at low levels alone, with bounds that are not known."""

    def at(self, sigma: float) -> float:
        return 1.2 if sigma < 0.1 else 0.6


SCHEDULES = [PowerWeight(3), CosineWeight(1.5), SNRWeight(-0.5), TableWeight([0.1, 1], [0.5, 2])]


@pytest.mark.parametrize(
    "weight", [-0.1, 1.5, float("nan"), *SCHEDULES, Interval(SCHEDULES[0], 0, 1), Interval(2, 0, 1)]
)
def test_weight_out_of_range(weight: float | WeightSchedule) -> None:
    with pytest.raises(ValueError, match=r"CFG\+\+ interpolates: it needs a weight between 0 and 1"):
        ClassifierFreeGuidancePP(weight)


def test_an_own_schedule_out_of_range_is_refused_before_the_first_step() -> None:
    walk(Euler(GRID), ClassifierFreeGuidancePP(Interval(Late(), 1, 5), positive=MODEL), start(2), LABELS[:3])
    with pytest.raises(ValueError, match=r"needs a weight between 0 and 1, got 1.2"):
        next(
            iter(
                Euler(GRID).steps(
                    ClassifierFreeGuidancePP(Late(), positive=MODEL), start(2), seeds=SampleSeeds(0, range(3))
                )
            )
        )
