"""Weights as functions of the noise level: ends, limits, means and the published curves."""

from __future__ import annotations

import math

import pytest

from lightning_guide.guidance import CosineWeight, Interval, PowerWeight, SNRWeight, TableWeight, WeightSchedule
from lightning_guide.noise_schedule import NoiseSchedule

SCHEDULE = NoiseSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
LEVELS = SCHEDULE.sigmas().tolist()
RISING: list[WeightSchedule] = [
    PowerWeight(3.0),
    PowerWeight(3.0, power=0.3, schedule=SCHEDULE),
    CosineWeight(3.0, power=2.0, schedule=SCHEDULE),
    SNRWeight(3.0),
    SNRWeight(3.0, middle=4.0, power=3.0),
]


@pytest.mark.parametrize("weight", RISING, ids=lambda each: type(each).__name__)
def test_weights_rise_from_one_to_their_end(weight: WeightSchedule) -> None:
    values = [weight.at(sigma) for sigma in (1e6, 80.0, *reversed(LEVELS), 1e-9, 0.0)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1, abs=1e-9) and values[-1] == pytest.approx(3)


@pytest.mark.parametrize("weight", RISING, ids=lambda each: type(each).__name__)
def test_a_final_weight_of_one_is_off_everywhere(weight: WeightSchedule) -> None:
    arguments = weight.recipe["init_args"] | {"weight": 1.0}
    if arguments.get("schedule"):
        arguments["schedule"] = SCHEDULE
    assert {type(weight)(**arguments).at(sigma) for sigma in (0.0, 0.1, 3.0, 500.0)} == {1.0}


def test_linear_in_sigma_and_the_constant_limit() -> None:
    line = PowerWeight(4.0, sigma_max=10.0)
    assert [line.at(sigma) for sigma in (20.0, 10.0, 5.0, 2.5)] == pytest.approx([1, 1, 2.5, 3.25])
    assert PowerWeight(4.0, sigma_max=10.0, power=2.0).at(5.0) == pytest.approx(1.75)
    assert PowerWeight(4.0, sigma_max=10.0, power=1e-9).at(9.9) == pytest.approx(4)


@pytest.mark.parametrize("weight", [PowerWeight(1 + 2 * 1.5, schedule=SCHEDULE), CosineWeight(4.0, schedule=SCHEDULE)])
def test_published_schedules_have_the_mean_weight(weight: WeightSchedule) -> None:
    """Over the timesteps, and each with its formula."""
    values = [weight.at(sigma) for sigma in LEVELS]
    assert sum(values) / len(values) == pytest.approx(2.5)
    for t in (0, 250, 999):
        x = t / 999
        share = 2 * (1 - x) if isinstance(weight, PowerWeight) else 1 + math.cos(math.pi * x)
        assert values[t] == pytest.approx(1 + 1.5 * share, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 7.0, 80.0])
def test_signal_to_noise_by_its_formula(sigma: float) -> None:
    snr = sigma**-2
    expected = 1 + 2 * snr**3 / (snr**3 + 4.0**3)
    assert SNRWeight(3.0, middle=4.0, power=3.0).at(sigma) == pytest.approx(expected)
    assert SNRWeight(3.0).at(sigma) == pytest.approx(1 + 2 / (1 + sigma**2))  # abar
    assert SNRWeight(3.0, power=0.5).at(sigma) == pytest.approx(1 + 2 / (1 + sigma))  # 1 - t of a flow
    steep, sharp = SNRWeight(3.0, middle=4.0, power=1e6), Interval(3.0, 0.0, 0.5)
    assert steep.at(sigma) == pytest.approx(sharp.at(sigma))


def test_tables() -> None:
    table = TableWeight([0.1, 1.0, 10.0], [1.0, 3.0, 2.0])
    assert [table.at(s) for s in (0.0, 0.05, 0.1, 1.0, 10.0, 80.0)] == pytest.approx([1, 1, 1, 3, 2, 2])
    assert table.at(10**-0.75) == pytest.approx(1.5) and table.at(10**0.5) == pytest.approx(2.5)
    assert TableWeight([1.0], [2.0]).at(0.3) == TableWeight([1.0], [2.0]).at(3.0) == 2.0


def test_bad_settings() -> None:
    for arguments in ({"weight": math.nan}, {"sigma_max": 0.0}, {"power": 0.0}):
        with pytest.raises(ValueError, match="PowerWeight needs a finite weight, sigma_max > 0 and power > 0, got"):
            PowerWeight(**({"weight": 2.0} | arguments))
    for arguments in ({"weight": math.inf}, {"middle": 0.0}, {"power": -1.0}):
        with pytest.raises(ValueError, match="SNRWeight needs a finite weight, middle > 0 and power > 0, got"):
            SNRWeight(**({"weight": 2.0} | arguments))
    for sigmas, weights in (([], []), ([1.0, 1.0], [1.0, 2.0]), ([0.0, 1.0], [1.0, 2.0]), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="TableWeight needs ascending positive sigmas and a finite weight"):
            TableWeight(sigmas, weights)
