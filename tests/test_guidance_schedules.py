"""Weights over the noise level."""

from __future__ import annotations

import math

import pytest

from lightning_guide.guidance.schedules import Interval, weight_at
from lightning_guide.guidance.weights import CosineWeight
from lightning_guide.noise import KarrasGrid


def test_interval_is_open_below_and_closed_above() -> None:
    interval = Interval(2.5, 0.2, 1.6)
    assert [interval.at(s) for s in (0.0, 0.2, 0.2000001, 1.0, 1.6, 1.6000001, 80.0)] == [1, 1, 2.5, 2.5, 2.5, 1, 1]


def test_published_presets_cover_the_published_steps() -> None:
    """EDM2-XXL: steps 17 to 22 of 32 for FID, 13 to 19 for FD-DINOv2."""
    levels = KarrasGrid(32).sigmas()[:-1].tolist()
    for low, high, first, last in ((0.19, 1.61, 17, 22), (0.60, 5.00, 13, 19)):
        # the published bounds are rounded to the printed levels
        inside = [i for i, s in enumerate(levels) if Interval(2.0, low, high * 1.003).at(s) != 1]
        assert inside == list(range(first, last + 1))


def test_cosine_rises_from_one_to_its_weight() -> None:
    cosine = CosineWeight(3.0, sigma_max=80.0, power=2.0)
    assert cosine.at(80.0) == cosine.at(100.0) == 1 and cosine.at(0.0) == pytest.approx(3)
    p = 1 - 20 / 80
    assert cosine.at(20.0) == pytest.approx(1 + 2 * (1 - math.cos(math.pi * p**2)) / 2)
    assert CosineWeight(3.0, sigma_max=80.0).at(40.0) == pytest.approx(2)
    values = [cosine.at(s) for s in (80, 60, 40, 20, 10, 1, 0)]
    assert values == sorted(values)


def test_a_schedule_may_be_restricted_to_an_interval() -> None:
    cut = Interval(CosineWeight(3.0, sigma_max=80.0), 10.0, 60.0)
    assert cut.at(40.0) == pytest.approx(2) and cut.at(5.0) == cut.at(70.0) == 1


def test_weight_at() -> None:
    assert weight_at(2, 5.0) == 2.0 and weight_at(Interval(2.0, 0, 1), 5.0) == 1.0


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-0.1, 1.0), (math.nan, 1.0)])
def test_bad_intervals(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"0 <= low < high in sigma, got low={low}, high={high}"):
        Interval(2.0, low, high)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_are_finite(weight: float) -> None:
    with pytest.raises(ValueError, match=f"interval needs a finite weight, got {weight}"):
        Interval(weight, 0.0, math.inf)
    with pytest.raises(ValueError, match="CosineWeight needs a finite weight"):
        CosineWeight(weight)


def test_bad_cosine() -> None:
    for arguments in ({"sigma_max": 0.0}, {"power": -1.0}):
        with pytest.raises(ValueError, match="sigma_max > 0 and power > 0"):
            CosineWeight(2.0, **arguments)
