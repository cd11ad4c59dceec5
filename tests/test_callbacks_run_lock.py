"""Two commands in one folder: the second is refused by name, and a killed owner blocks nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from callbacks import RunCheckpoint, RunLock
from datamodules.storage.shard_writer import write_shards
from lightning_guide.cli import main
from lightning_guide.runs.writing import write_averages
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.locks import FolderLock
from tests.processes import Processes, kill
from tests.runs import TinyImages, tiny_module, tiny_trainer
from tests.test_cli import TINY

MAIN = ("lightning_guide.cli", "main")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A fit in `tmp_path`/run that does not end in time, with a checkpoint after each step."""
    checkpoint = {"class_path": "RunCheckpoint", "init_args": {"every_steps": 1}}
    trainer = TINY["trainer"] | {  # type: ignore[operator]
        "max_steps": 100_000,
        "callbacks": [{"class_path": "PostHocEMA", "init_args": {"every_images": 80}}, checkpoint],
    }
    arguments = TINY["model"]["init_args"] | {"evaluations": {"unguided": {"num_samples": 5}}}  # type: ignore[index]
    model = TINY["model"] | {"init_args": arguments}  # type: ignore[operator]
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(TINY | {"trainer": trainer, "model": model}))
    return ["fit", "-c", str(tmp_path / "long.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]


def await_snapshots(run: Path) -> None:
    end = time.monotonic() + 100
    while not list((run / "snapshots").glob("images-*")) or not list((run / "checkpoints").glob("step-*.ckpt")):
        assert time.monotonic() < end, "the fit stored nothing"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_second_fit_is_refused_and_a_killed_one_is_continued(
    words: list[str], tmp_path: Path, processes: Processes
) -> None:
    run = tmp_path / "run"
    owner = processes.start(MAIN, tmp_path / "log", arguments=words)
    try:
        await_snapshots(run)
        config = (run / "config.yaml").read_bytes()
        for other in (words, ["fit", "-c", str(run / "config.yaml"), "--model.seed", "7"]):
            with pytest.raises(SystemExit) as refused:
                main(other)
            said = str(refused.value.code)
            assert re.search(rf"the run .*run is being written by process {owner} on {os.uname().nodename} \(", said)
            assert "\n" not in said
        assert (run / "config.yaml").read_bytes() == config
        main(["test", "-c", str(run / "config.yaml")])  # beside the fit
        assert (run / "report/metrics.json").is_file()
        shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tmp"))
    finally:
        kill(owner, signal.SIGKILL)
        processes.wait(owner)
    assert json.loads((run / ".lock").read_text())["pid"] == owner
    for folder in (run, tmp_path / "copy"):
        step = max(int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*.ckpt"))
        main([*words[:3], "--trainer.default_root_dir", str(folder), "--trainer.max_steps", str(step + 1)])
        assert not (folder / ".lock").exists()


def test_the_lock_is_held_while_a_trainer_fits_and_free_afterwards(tmp_path: Path) -> None:
    class Looks(RunLock):
        def on_train_batch_start(self, *arguments: object) -> None:
            super().on_train_batch_start(*arguments)  # type: ignore[arg-type]
            assert (tmp_path / ".lock").is_file()
            if broken:
                raise ValueError("a broken step")

    for broken in (True, False):
        trainer = tiny_trainer(tmp_path, RunCheckpoint(100), Looks(), steps=2)
        if broken:
            with pytest.raises(ValueError, match="a broken step"):
                trainer.fit(tiny_module(), datamodule=TinyImages())
        else:
            trainer.fit(tiny_module(), datamodule=TinyImages())
        assert not (tmp_path / ".lock").exists()


def test_an_owner_that_lost_its_lock_writes_nothing_more(tmp_path: Path) -> None:
    class Steals(RunLock):
        def on_train_batch_start(self, trainer: object, module: object, batch: object, number: int) -> None:
            if number == 3:
                assert self._lock is not None
                self._lock._lost = "process 7 on elsewhere"
            super().on_train_batch_start(trainer, module, batch, number)  # type: ignore[arg-type]

    trainer = tiny_trainer(tmp_path, RunCheckpoint(100), Steals(), steps=8)
    with pytest.raises(ValueError, match="was taken over by process 7 on elsewhere; this process ends"):
        trainer.fit(tiny_module(), datamodule=TinyImages())
    assert not list(tmp_path.rglob("step-*"))


def test_other_writers_of_a_folder_are_refused_by_name(tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "held").mkdir()
    places = [tmp_path / "held" / name for name in (".train.json.lock", ".lock")]
    owner = processes.start(("tests.test_callbacks_run_lock", "hold"), tmp_path / "log", places=list(map(str, places)))
    try:
        while not (tmp_path / "held/ready").exists():
            time.sleep(0.01)
        store = SnapshotStore(tmp_path / "source/snapshots")
        store.save({"x": torch.ones(2)}, images=8, sigma_rel=0.1, recipe={})
        image = torch.zeros(3, 4, 4, dtype=torch.uint8)
        with pytest.raises(ValueError, match=f"train.json is being written by process {owner} "):
            write_shards([(image, 0)], tmp_path / "held")
        with pytest.raises(ValueError, match=f"the run .*held is being written by process {owner} "):
            write_averages(store, [(8, 0.1)], tmp_path / "held", max_error=0.1)
        write_shards([(image, 0)], tmp_path / "held", name="test")  # another name is another conversion
    finally:
        kill(owner)
        processes.wait(owner)
    write_shards([(image, 0)], tmp_path / "held")
    write_averages(store, [(8, 0.1)], tmp_path / "held", max_error=0.1)
    assert not [path for path in (tmp_path / "held").iterdir() if path.name.startswith(".")]


def hold(places: list[str]) -> None:
    """Hold locks until killed."""
    for place in places:
        FolderLock(place, what=place).acquire()
    Path(places[0]).with_name("ready").touch()
    signal.pause()


@pytest.mark.slow
def test_the_processes_of_one_run_hold_one_lock(words: list[str], tmp_path: Path, processes: Processes) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "3"]
    processes.call_ranks(2, MAIN, tmp_path / "log", arguments=[*words, *two])
    assert not (tmp_path / "run/.lock").exists() and (tmp_path / "run/config.yaml").is_file()


def test_a_fit_removes_the_temporary_files_of_killed_ones(tmp_path: Path) -> None:
    old, new = [".config.yaml.0a1b2c3d.tmp", "report/.metrics.json.0a1b2c3d.tmp"], "grids/.fit-8.png.0a1b2c3d.tmp"
    for name in (*old, new, "report/mine.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (*old, "report/mine.tmp"):
        os.utime(tmp_path / name, (time.time() - 100,) * 2)
    tiny_trainer(tmp_path, RunCheckpoint(2), RunLock(), steps=1).fit(tiny_module(average=None), datamodule=TinyImages())
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tmp")}
    assert left == {new, "report/mine.tmp"}  # of a validation that runs now, and what is not ours
