"""Resume by rerunning the command: after a clean stop or SIGKILL at any instant, results are bit-identical.

All runs have gradient accumulation, averages, early snapshots, guided evaluations and checkpoints; the killed ones
also loader workers. They run in separate processes and are killed by real signals.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots import file as snapshot_file
from tests import runs
from tests.processes import Processes, kill
from tests.test_cli import TINY, fit

STEPS = 12


# --- processes ---------------------------------------------------------------------------------------


class Beat(pl.Callback):
    """Appends each micro-step to the file `beats` of the run at its start; can send this process a signal at one."""

    def __init__(self, folder: str, number: int = 0, at: int | None = None) -> None:
        self.file, self.number, self.at = Path(folder) / "beats", number, at

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        with self.file.open("a") as file:
            file.write(f"{trainer.global_step} {batch_idx}\n")
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.at:
            os.kill(os.getpid(), self.number)


def train(
    folder: str, *, number: int = 0, at: int | None = None, aim: str | None = None, count: int = 1, **options: Any
) -> None:
    """Train a full run; send the signal `number` at micro-step `at`; kill it at `aim`, the `count`th time."""
    _report_what_is_written(Path(folder))
    if aim is not None:
        AIMS[aim](count)
    runs.full_run(folder, steps=STEPS, callbacks=[Beat(folder, number, at)], **options)


def _report_what_is_written(folder: Path) -> None:
    """Record each snapshot after `save` has returned."""
    save = SnapshotStore.save

    def reporting(store: SnapshotStore, *args: Any, **kwargs: Any) -> Path:
        path = save(store, *args, **kwargs)
        with (folder / "reported").open("a") as file:
            file.write(f"{path.name}\n")
        return path

    SnapshotStore.save = reporting  # type: ignore[method-assign]


def _die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dies(owner: Any, name: str, count: int, *, part: str = "", when: str, file: int = 0) -> None:
    """Replace `owner.name`: the process dies `when` ("before", "half" or "after") it is called the `count`th time.

    Calls count whose arguments hold `part`; "half" leaves only the first half of the file, argument number `file`.
    """
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += any(part in str(argument) for argument in args)
        due = calls == count and any(part in str(argument) for argument in args)
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if due:
            if when == "half":
                os.truncate(args[file], os.stat(args[file]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


AIMS: dict[str, Callable[[int], None]] = {
    "half a checkpoint": lambda n: _dies(pl.Trainer, "save_checkpoint", n, when="half", file=1),
    "a checkpoint without its name": lambda n: _dies(os, "replace", n, part=".ckpt", when="before"),
    "a checkpoint before older ones go": lambda n: _dies(os, "replace", n, part=".ckpt", when="after"),
    "half a snapshot": lambda n: _dies(snapshot_file, "save_file", n, when="half", file=1),
    "a snapshot without its name": lambda n: _dies(os, "replace", n, part=".safetensors", when="before"),
    "a snapshot without its row in the index": lambda n: _dies(os, "replace", n, part=".safetensors", when="after"),
    "half an index": lambda n: _dies(Path, "write_text", n, part="index.json", when="half"),
    "an index without its name": lambda n: _dies(os, "replace", n, part="index.json", when="before"),
    "one average of two": lambda n: _dies(SnapshotStore, "save", 2 * n - 1, when="after"),
}


# --- expected files ------------------------------------------------------------------------------------

TRAIN = ("tests.test_resume", "train")


@pytest.fixture(scope="module")
def whole(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    processes.call(TRAIN, folder / "log", folder=str(folder))
    assert runs.checkpoint(folder)["global_step"] == STEPS
    yield folder


def assert_equal_end(folder: Path, whole: Path) -> None:
    """Check that weights, optimizer, averages, clock and snapshots equal those of the uninterrupted run bit for bit."""
    runs.assert_same(runs.checkpoint(folder), runs.checkpoint(whole))
    runs.assert_same(runs.snapshots(folder), runs.snapshots(whole))


class Witness:
    """Checks a run after each kill: all files once written exist, complete and unchanged."""

    def __init__(self, folder: Path, whole: Path) -> None:
        self.folder, self.expected = folder, runs.snapshots(whole)
        self.step = 0

    def look(self) -> None:
        record = self.folder / "reported"
        reported = set(record.read_text().split()) if record.exists() else set()
        found = runs.snapshots(self.folder)
        assert reported <= set(found) <= set(self.expected)
        for name, snapshot in found.items():
            runs.assert_same(snapshot, self.expected[name], name)
        path = newest_checkpoint(self.folder)
        if path is not None:
            step = int(torch.load(path, weights_only=True)["global_step"])
            assert step >= self.step and path.name == f"step-{step:09d}.ckpt"
            self.step = step
        assert self.step == 0 or path is not None


# --- clean stops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "at"),  # start and middle of an accumulated step
    [
        (signal.SIGTERM, 6),
        (signal.SIGINT, 9),
        pytest.param(signal.SIGTERM, 9, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 6, marks=pytest.mark.slow),
    ],
)
def test_stopped_run_resumes(
    processes: Processes, whole: Path, tmp_path: Path, number: signal.Signals, at: int
) -> None:
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), number=number, at=at)
    assert runs.checkpoint(tmp_path)["global_step"] == at // 2 + 1
    assert f"{number.name} requested a stop" in (tmp_path / "log").read_text()
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path))
    assert_equal_end(tmp_path, whole)
    # each micro-step was taken once, and counted on
    beats = (tmp_path / "beats").read_text().split("\n")[:-1]
    assert beats == (whole / "beats").read_text().split("\n")[:-1] and len(beats) == 2 * STEPS


@pytest.mark.slow
def test_run_stopped_at_every_step_resumes(processes: Processes, whole: Path, tmp_path: Path) -> None:
    for step in range(0, STEPS, 2):
        processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), number=signal.SIGTERM, at=2 * step + 1)
        assert runs.checkpoint(tmp_path)["global_step"] == step + 1
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path))
    assert_equal_end(tmp_path, whole)


def test_ctrl_c_with_loader_workers_resumes(processes: Processes, whole: Path, tmp_path: Path) -> None:
    pid = processes.start(TRAIN, tmp_path / "log", folder=str(tmp_path), workers=2)
    wait_for_beats(tmp_path, 9)
    kill(pid, signal.SIGINT, group=True)  # as a terminal does
    assert processes.wait(pid) == 0, (tmp_path / "log").read_text()[-2000:]
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), workers=2)
    assert_equal_end(tmp_path, whole)


def wait_for_beats(folder: Path, count: int, *, seconds: float = 60) -> None:
    """Wait until the run has started `count` micro-steps."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (folder / "beats").exists() and (folder / "beats").read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"no {count} steps in {seconds} s: {(folder / 'log').read_text()[-2000:]}")


def test_log_continues_after_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    config: Any = copy.deepcopy(TINY)
    config["trainer"]["callbacks"] += [{"class_path": "RunCheckpoint", "init_args": {"every_steps": 2}}]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    for steps in (1, 3, 5):
        fit(monkeypatch, run, "--trainer.max_steps", steps)
        if steps == 1:  # killed before the first checkpoint
            (run / "checkpoints" / "step-000000001.ckpt").unlink()
        if steps == 3:  # killed after the third step, which is in the log but not in a checkpoint
            (run / "checkpoints" / "step-000000003.ckpt").unlink()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("images_seen")]
    assert seen == [(k, 8 * k) for k in range(1, 6)]


# --- SIGKILL -------------------------------------------------------------------------------------------


def killed_at(processes: Processes, whole: Path, folder: Path, aims: Iterable[tuple[str, int]]) -> None:
    """Kill one run at each of the `aims`, then let it finish."""
    witness = Witness(folder, whole)
    for aim, count in aims:
        pid = processes.start(TRAIN, folder / "log", folder=str(folder), aim=aim, count=count, workers=2)
        assert processes.wait(pid) == -signal.SIGKILL, (folder / "log").read_text()[-2000:]
        witness.look()
    processes.call(TRAIN, folder / "log", folder=str(folder), workers=2)
    assert_equal_end(folder, whole)


@pytest.mark.slow
def test_run_killed_while_writing_any_file_resumes(processes: Processes, whole: Path, tmp_path: Path) -> None:
    killed_at(processes, whole, tmp_path, [(aim, 1) for aim in AIMS])


@pytest.mark.slow
@pytest.mark.parametrize("aim", AIMS)
def test_run_killed_repeatedly_while_writing_one_file_resumes(
    processes: Processes, whole: Path, tmp_path: Path, aim: str
) -> None:
    killed_at(processes, whole, tmp_path, [(aim, count) for count in (1, 1, 2)])


def killed_at_random_instants(processes: Processes, whole: Path, folder: Path, *, kills: int, seed: int) -> None:
    """Kill runs at random instants and restart them until `kills` of them were killed."""
    draw = random.Random(seed)
    run, died, lived = 0, 0, 0.0
    while died < kills:
        here = folder / f"run-{run}"
        here.mkdir()
        witness = Witness(here, whole)
        while True:
            begin = time.monotonic()
            pid = processes.start(TRAIN, here / "log", folder=str(here), workers=2)
            if died < kills:
                time.sleep(draw.uniform(0, lived or 1.0))
                kill(pid)
            status = processes.wait(pid)
            witness.look()
            if status == 0:
                lived = max(lived, time.monotonic() - begin)
                break
            assert status == -signal.SIGKILL, (here / "log").read_text()[-2000:]
            died += 1
        assert_equal_end(here, whole)
        run += 1


def test_run_killed_at_random_instants_resumes(processes: Processes, whole: Path, tmp_path: Path) -> None:
    killed_at_random_instants(processes, whole, tmp_path, kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_run_killed_at_many_random_instants_resumes(
    processes: Processes, whole: Path, tmp_path: Path, seed: int
) -> None:
    killed_at_random_instants(processes, whole, tmp_path, kills=20, seed=seed)
