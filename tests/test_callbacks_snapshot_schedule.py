"""Early snapshots: their times and invalid settings. Their files are tested with the averages."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from callbacks import EarlySnapshots, PostHocEMA, RunCheckpoint
from lightning_guide.ema import profile_error
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.snapshots import fraction_images
from tests.runs import TinyImages, tiny_module, tiny_trainer


@pytest.mark.parametrize("planned", [1, 16, 96, 1000, 2_147_483_647])
@pytest.mark.parametrize("rebuildable", [1, 2, 16])
def test_times_are_the_fractions_and_evenly_spaced_times_before(planned: int, rebuildable: int) -> None:
    times = EarlySnapshots(["1/32", 0.25, "1/3.5", "1/1"], rebuildable=rebuildable).times(planned)
    assert times == sorted(set(times)) and all(0 < time <= planned for time in times)
    for fraction in (Fraction(1, 32), Fraction(1, 4), Fraction(2, 7), Fraction(1)):
        end = int(fraction * planned)
        for k in range(1, rebuildable + 1):
            assert end * k // rebuildable in (0, *times)
    assert len(times) <= 4 * rebuildable


@pytest.mark.parametrize("width", [0.07, 0.13, 0.2])
def test_default_times_allow_reconstruction_of_other_widths(width: float) -> None:
    early, planned = EarlySnapshots(), 2**20
    times = early.times(planned)
    for fraction in early.fractions:
        end = fraction_images(fraction, planned)
        stored = [(time, tracked) for time in times if time <= end for tracked in (0.05, 0.1)]
        assert profile_error(stored, (end, width)) < 0.025  # 2.2 % at 0.2


@pytest.mark.parametrize("fraction", ["0", "5/4", 1.5, "64", "early"])
def test_invalid_fractions_are_rejected(fraction: str | float) -> None:
    with pytest.raises(ValueError, match="fraction of the planned run such as"):
        EarlySnapshots([fraction])


def test_rebuildable_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="rebuildable >= 1 .* got 0"):
        EarlySnapshots(rebuildable=0)


def test_run_without_end_or_without_averages_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a DiffusionModule and a planned run: set trainer.max_steps"):
        trainer = tiny_trainer(tmp_path, PostHocEMA(8), EarlySnapshots(), steps=-1, max_epochs=1)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    with pytest.raises(ValueError, match="stores averages of callbacks.PostHocEMA; add that callback"):
        tiny_trainer(tmp_path, EarlySnapshots(), steps=2).fit(tiny_module(average=None), datamodule=TinyImages())
    assert not (tmp_path / "snapshots").exists()


def test_extended_run_reports_that_fractions_refer_to_its_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for steps in (2, 2, 4):
        callbacks = [PostHocEMA(8), EarlySnapshots(["1/2"]), RunCheckpoint(1)]
        trainer = tiny_trainer(tmp_path, *callbacks, steps=steps)
        with caplog.at_level("INFO"):
            newest = newest_checkpoint(tmp_path)
            trainer.fit(tiny_module(average=None), datamodule=TinyImages(), ckpt_path=newest, weights_only=True)
        message = (
            "planned for 8 images and will now train on 16 images; fractions of the run, 1/2, still refer to the plan"
        )
        assert (message in caplog.text) == (steps == 4)
