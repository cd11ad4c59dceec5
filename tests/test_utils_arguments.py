"""Arguments of guidances in Python: what is of another kind is refused in a sentence, where it is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lightning_guide as lg
from lightning_guide.utils.arguments import CheckedArguments

MODEL = lg.gaussian([0.0, 0.0], 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lg.Autoguidance("models/x"), "Autoguidance: guider is 'models/x'; expected a Denoiser"),
        (lambda: lg.Autoguidance(2, MODEL), "Autoguidance: guider is 2; expected a Denoiser"),
        (lambda: lg.Guided(MODEL, 2), "Guided: negatives is a GaussianMixture; expected a list, each item a Denoiser"),
        (lambda: lg.Autoguidance(MODEL, [2]), r"weight is \[2\]; expected a number or a WeightSchedule"),
        (lambda: lg.Guided([MODEL], [None]), "weights is .None.; expected a list, each item a number or a Weight"),
        (lambda: lg.Autoguidance(MODEL, combination="apg"), "combination is 'apg'; expected a Combination"),
        (
            lambda: lg.Autoguidance(MODEL, combination=lg.AdaptiveProjection),
            "is the class AdaptiveProjection; expected",
        ),
        (lambda: lg.Unconditional(nn.Linear(1, 1)), "positive is a Linear; expected a Denoiser"),
        (lambda: lg.Neon("x"), "Neon: auxiliary is 'x'; expected a Denoiser"),
        (lambda: lg.FrequencyDecoupled(0.5), "factors is 0.5; expected a list, each item a number"),
        (lambda: lg.Rescale("x"), "Rescale: phi is 'x'; expected a number"),
        (lambda: lg.PowerWeight("3"), "PowerWeight: weight is '3'; expected a number"),
        (lambda: lg.Interval(None, 0, 1), "Interval: weight is None; expected a number or a WeightSchedule"),
    ],
)
def test_other_kinds_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_and_lists_of_any_library_are_accepted() -> None:
    lg.Guided(nn.ModuleList([MODEL]), np.array([2.0]), positive=MODEL)
    lg.Guided((MODEL,), torch.tensor([2.0]), combination=lg.Rescale(np.float32(0.5)))
    copy.deepcopy(lg.Interval(lg.PowerWeight(3), 0, 1))


def test_annotations_that_cannot_be_found_are_not_checked() -> None:
    class Unknown:
        pass

    class Own(CheckedArguments):
        def __init__(self, part: Unknown, weight: float) -> None:
            self.part, self.weight = part, weight

    assert Own(Unknown(), "x").weight == "x"  # type: ignore[arg-type]
