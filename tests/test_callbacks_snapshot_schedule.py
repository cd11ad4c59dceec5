"""Early snapshots: their times and invalid settings. Their files are tested with the averages."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from callbacks import EarlySnapshots, PostHocEMA, RunCheckpoint
from lightning_guide.commands.averages import reconstruct
from lightning_guide.ema import profile_error
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.runs import Run
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.runs.models import open_snapshots
from lightning_guide.snapshots import fraction_images
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer


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
        trainer = tiny_trainer(tmp_path, PostHocEMA(8), EarlySnapshots(), steps=-1)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    with pytest.raises(ValueError, match="stores averages of callbacks.PostHocEMA; add that callback"):
        tiny_trainer(tmp_path, EarlySnapshots(), steps=2).fit(tiny_module(average=None), datamodule=TinyImages())
    assert not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize(
    ("fraction", "batch", "steps", "every", "stored"),
    [
        ("1/16", 8, 20, 1, 16),  # 10 of 160 images: the second step
        ("1/16", 2, 3, 1, 2),  # less than an image
        (0.3, 5, 5, 1, 10),  # 7.5 of 25 images
        ("1/8", 4, 20, 3, 12),  # averages move every 12 images
        ("1/1", 4, 7, 3, 28),  # and after the last step
    ],
)
def test_planned_fraction_is_found_by_its_name_whatever_step_it_fell_on(
    tmp_path: Path, fraction: str | float, batch: int, steps: int, every: int, stored: int
) -> None:
    guided = {"auto": evaluation(Autoguidance(Snapshot(fraction, 0.05), 2.0), num_samples=2)}
    callbacks = [PostHocEMA(1000, update_every_steps=every), EarlySnapshots([fraction], rebuildable=1)]
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": steps}
    trainer = tiny_trainer(tmp_path, *callbacks, steps=steps, **options)
    trainer.fit(module := tiny_module(average=0.05, evaluations=guided), datamodule=TinyImages(batch_size=batch))
    assert set(module.evaluations.results) == {"auto"}
    store = open_snapshots(tmp_path)
    assert store.resolve_images(fraction) == stored and stored in {entry.images for entry in store.entries()}
    assert Run(tmp_path).model(images=fraction, sigma_rel=0.05).data_shape == (1, 4, 4)


def test_count_within_a_step_names_the_snapshot_at_its_end_also_of_copies(tmp_path: Path) -> None:
    """The averages of a run stay what they were in steps of 8 images; a snapshot is due every 10 images."""
    trainer = tiny_trainer(tmp_path, PostHocEMA(10), steps=5)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages(batch_size=8))
    store = open_snapshots(tmp_path)
    assert [store.resolve_images(count) for count in (10, 16, 20, 24, 30, 31)] == [16, 16, 24, 24, 32, 32]
    assert store.resolve_images(8) == 8  # no snapshot: to be rebuilt
    reconstruct(str(tmp_path), [0.06], images=["1/4"], max_error=1.0)  # 10 of 40 images
    assert open_snapshots(tmp_path / "reconstructed").resolve_images("1/4") == 16


def test_resumed_run_with_another_batch_size_finds_its_fractions(tmp_path: Path) -> None:
    guided = {"auto": evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0), num_samples=2)}
    for batch, steps in ((4, 4), (6, 6)):  # planned: 40 images
        callbacks = [PostHocEMA(1000), EarlySnapshots(["1/2"], rebuildable=1), RunCheckpoint(4)]
        if steps == 4:
            callbacks.append(StopAfter(4))
        options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 6}
        trainer = tiny_trainer(tmp_path, *callbacks, steps=10 if steps == 4 else 6, **options)
        module = tiny_module(average=0.05, evaluations=guided)
        data = TinyImages(batch_size=batch)
        trainer.fit(module, datamodule=data, ckpt_path=newest_checkpoint(tmp_path), weights_only=True)
    assert module.images_seen == 28 and set(module.evaluations.results) == {"auto"}
    assert open_snapshots(tmp_path).resolve_images("1/2") == 22


class StopAfter(pl.Callback):
    """Ends training after some steps, without a last validation."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.should_stop, trainer.limit_val_batches = True, 0


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
