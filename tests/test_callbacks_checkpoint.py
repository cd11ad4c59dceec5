"""Checkpoints of a run: when, how many, and complete after any failure while one is written."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from callbacks import PostHocEMA, RunCheckpoint
from lightning_guide.runs.checkpoints import newest_checkpoint
from tests.runs import TinyImages, tiny_module, tiny_trainer


class Names(pl.Callback):
    """Records the files in the checkpoint folder at the start of each micro-step."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        self.seen.append(sorted(path.name for path in folder.glob("*")))


def fit(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    trainer = tiny_trainer(folder, *callbacks, **options)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages(), weights_only=True)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_saves_at_the_interval_and_at_the_end_and_keeps_the_newest(tmp_path: Path, accumulate: int) -> None:
    names = Names()
    fit(tmp_path, RunCheckpoint(2), names, steps=7, accumulate_grad_batches=accumulate)
    two, four, six, seven = (f"step-{k:09d}.ckpt" for k in (2, 4, 6, 7))
    expected = [[], [], [two], [two], [two, four], [two, four], [four, six]]
    assert names.seen == [files for files in expected for _ in range(accumulate)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [six, seven]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / seven
    for path in (tmp_path / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["global_step"] == int(path.stem[5:])


def test_newest_checkpoint_is_none_before_the_first(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-000000004.ckpt.tmp").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None


def test_finished_run_is_not_saved_again(tmp_path: Path) -> None:
    fit(tmp_path, RunCheckpoint(100), steps=2)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    before = path.stat().st_mtime_ns
    trainer = tiny_trainer(tmp_path, RunCheckpoint(100), steps=2)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages(), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 2 and path.stat().st_mtime_ns == before


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    stray, other = tmp_path / "checkpoints" / ".step-000000001.ckpt.tmp", tmp_path / "checkpoints" / "notes.txt"
    stray.write_bytes(b"half")
    other.write_text("mine")
    fit(tmp_path, RunCheckpoint(2), steps=2)
    assert not stray.exists() and other.exists()


def test_only_files_that_the_run_recorded_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    own = [
        "step-000000001-best.ckpt",
        "step-000000001.ckpt",
        "step-1.ckpt",
        ".step-mine.ckpt.tmp",
        "step-000000099.ckpt",
    ]
    for name in own:
        (folder / name).write_bytes(b"mine")
    fit(tmp_path, RunCheckpoint(2, keep=1), steps=6)
    assert all((folder / name).read_bytes() == b"mine" for name in own)
    assert newest_checkpoint(tmp_path) == folder / "step-000000006.ckpt"
    assert len(list(folder.iterdir())) == len(own) + 1


def test_all_kept_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, RunCheckpoint(1, keep=5), steps=4)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_an_error_after_a_step_loses_nothing(tmp_path: Path) -> None:
    class Fails(pl.Callback):
        def on_validation_batch_start(self, *args: Any) -> None:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, RunCheckpoint(100), Fails(), steps=6, limit_val_batches=1.0, val_check_interval=3)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-000000003.ckpt"


def test_an_error_within_a_step_saves_no_half_of_it(tmp_path: Path) -> None:
    class Fails(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, RunCheckpoint(100), Fails(), steps=6)
    assert newest_checkpoint(tmp_path) is None


def test_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = pl.Trainer.save_checkpoint

    def fails(trainer: pl.Trainer, path: Path, **options: Any) -> None:
        save(trainer, path, **options)
        if trainer.global_step == 4:
            raise OSError("no space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", fails)
    with pytest.raises(OSError, match="no space left"):
        fit(tmp_path, RunCheckpoint(2), steps=6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000002.ckpt"]


def test_full_disk_error_names_the_file(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"(large|space).*step-000000002.ckpt"):
            fit(tmp_path, RunCheckpoint(2), steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("arguments", [{"every_steps": 0}, {"every_steps": 1, "keep": 0}])
def test_invalid_settings_are_rejected(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs every_steps >= 1 and keep >= 1, got"):
        RunCheckpoint(**arguments)


def test_snapshots_without_a_checkpoint_are_not_replaced_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, PostHocEMA(8), RunCheckpoint(2), steps=4)
    newest = tmp_path / "snapshots/images-000000000016-sigma_rel-0.0500.safetensors"
    written = newest.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "checkpoints")  # or never copied
    with pytest.raises(ValueError, match=f"{tmp_path} holds snapshots up to 16 images, but no checkpoint to continue"):
        fit(tmp_path, PostHocEMA(8), RunCheckpoint(2), steps=4)
    assert newest.stat().st_mtime_ns == written
    with caplog.at_level("INFO"):
        fit(tmp_path, PostHocEMA(8), RunCheckpoint(4), steps=4)  # it may have been killed before the first one
        assert "up to 16 images, but no checkpoint: training starts from the beginning" in caplog.text
        caplog.clear()
        fit(tmp_path / "new", PostHocEMA(8), RunCheckpoint(4), steps=1)
        assert "no checkpoint" not in caplog.text
