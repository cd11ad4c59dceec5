"""Two processes with gloo on the CPU: same data as one process, bit-identical resume, common stops and errors."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks import PostHocEMA
from lightning_guide.training.monitor import TrainingDivergedError
from lightning_guide.utils.errors import explain_runtime_error
from tests import runs
from tests.processes import Processes
from tests.ranks import TRAIN, options, rank, seen, train
from tests.runs import TinyImages, assert_same, tiny_module, tiny_trainer


def poisoned(folder: str, world: int) -> None:
    """Rank 1 alone gets NaN data; both ranks must stop with an error."""

    class Poisoned(TinyImages):
        def encode(self, raw: Tensor) -> Tensor:
            x = super().encode(raw)
            bad = rank() == 1 and self.trainer is not None and self.trainer.global_step >= 2
            return x * float("nan") if bad else x

    trainer = tiny_trainer(folder, PostHocEMA(8), steps=20, **options(world))
    module = tiny_module(average=None, max_bad_steps=3)
    try:
        trainer.fit(module, datamodule=Poisoned())
    except TrainingDivergedError as error:
        assert "before step 4" in str(error) and "after 2 steps" in str(error), str(error)
        assert all(p.isfinite().all() for p in module.parameters())
        torch.save(dict(module.state_dict()), Path(folder) / f"seen-{rank()}.pt")


def test_training_on_two_ranks(processes: Processes, pair: Path, tmp_path: Path) -> None:
    one, two = seen(pair)
    assert_same(one["weights"], two["weights"])
    assert_same(one["average"], two["average"])
    assert one["images"] == two["images"] == [16 * ((k + 1) // 2) for k in range(16)]  # of both ranks together
    assert not any(torch.equal(*noise) for noise in zip(one["noise"], two["noise"], strict=True))
    assert len(torch.stack(one["noise"] + two["noise"]).unique(dim=0)) == 32
    assert two["saved"] == [] and len(one["saved"]) == len(set(one["saved"])) * 2  # both widths, by rank 0 alone
    assert one["results"] == two["results"] and set(one["results"]) == {"plain", "auto"}
    # together they read what one process with twice the batch reads
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), world=1, batch=8)
    (alone,) = seen(tmp_path, 1)
    together = [torch.cat(batches) for batches in zip(one["data"], two["data"], strict=True)]
    assert_same(together, alone["data"])
    assert alone["images"] == one["images"]
    clock = runs.checkpoint(pair)["clock"]
    assert clock == runs.checkpoint(tmp_path)["clock"] == {"images_seen": 128, "planned_images": 128}
    assert set(runs.snapshots(tmp_path)) == set(runs.snapshots(pair))


def test_signal_to_one_rank_stops_both_and_the_run_resumes(processes: Processes, pair: Path, tmp_path: Path) -> None:
    # ranks agree once a second, at least every 10 steps; the run of 8 may end before that, so this one is longer
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, signal_rank in ((whole, -1), (parted, 1), (parted, -1)):
        folder.mkdir(exist_ok=True)
        processes.call_ranks(2, TRAIN, folder / "log", folder=str(folder), world=2, steps=12, signal_rank=signal_rank)
        if signal_rank == 1:
            step = runs.checkpoint(parted)["global_step"]
            assert 2 <= step <= 11
            assert f"requested a stop: stopping after step {step}" in (parted / "log.0").read_text()
    one, two = seen(parted)
    assert_same(one["weights"], two["weights"])
    assert_same(runs.checkpoint(parted), runs.checkpoint(whole))
    assert_same(runs.snapshots(parted), runs.snapshots(whole))


def test_signal_to_one_rank_in_a_validation_stops_both_at_once(processes: Processes, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, in_validation in ((whole, False), (parted, True), (parted, False)):
        folder.mkdir(exist_ok=True)
        log, rank = folder / f"log-{in_validation}", 1 if in_validation else -1
        processes.call_ranks(2, TRAIN, log, folder=str(folder), world=2, validation_rank=rank)
        if in_validation:
            assert runs.checkpoint(parted)["global_step"] == 4  # where it validates first, every 8 micro-steps
            assert "requested a stop: stopping after step 4" in log.with_name(f"{log.name}.0").read_text()
            assert all(each["validated"] == 0 for each in seen(parted))
    assert [each["validated"] for each in seen(parted)] == [2, 2]  # that of step 4 is repeated
    assert_same(*(each["weights"] for each in seen(parted)))
    assert_same(runs.checkpoint(parted), runs.checkpoint(whole))
    assert_same(runs.snapshots(parted), runs.snapshots(whole))


def test_resume_on_another_number_of_ranks(processes: Processes, pair: Path, tmp_path: Path) -> None:
    processes.call_ranks(2, TRAIN, tmp_path / "log", folder=str(tmp_path), world=2, steps=4)
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), world=1, batch=8)
    assert runs.checkpoint(tmp_path)["clock"] == {"images_seen": 128, "planned_images": 64}
    (rest,), whole = seen(tmp_path, 1), seen(pair)
    together = [torch.cat(batches) for batches in zip(whole[0]["data"], whole[1]["data"], strict=True)]
    assert_same(rest["data"], together[8:])


def test_bad_data_on_one_rank_stops_both(processes: Processes, tmp_path: Path) -> None:
    processes.call_ranks(2, ("tests.test_ddp", "poisoned"), tmp_path / "log", folder=str(tmp_path), world=2)
    assert_same(*seen(tmp_path))


def test_crashed_rank_stops_the_others_and_the_run_resumes(processes: Processes, pair: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"folder": str(tmp_path), "world": 2}
    begin = time.monotonic()
    pids = processes.start_ranks(2, TRAIN, tmp_path / "log", **arguments, signal_rank=1, dies=True)
    assert [processes.wait(pid, seconds=90) for pid in pids] == [1, -signal.SIGKILL]
    assert time.monotonic() - begin < 60
    log = (tmp_path / "log.0").read_text().strip().rpartition("RuntimeError: ")[2]
    sentence = explain_runtime_error(log)
    assert sentence is not None and sentence.startswith("another process of this run crashed or is unresponsive (")
    assert explain_runtime_error("mat1 and mat2 shapes cannot be multiplied") is None
    assert runs.checkpoint(tmp_path)["global_step"] == 3
    processes.call_ranks(2, TRAIN, tmp_path / "log", **arguments)
    assert_same(runs.checkpoint(tmp_path), runs.checkpoint(pair))
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))


# --- Lightning's own launcher --------------------------------------------------------------------------


def launch(folder: str, script: str) -> None:
    """Run rank 0, which starts `script` as rank 1."""
    sys.argv = [script]
    train(folder, 2)


def test_lightning_starts_the_second_process(processes: Processes, pair: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from tests.ranks import train\ntrain({str(tmp_path)!r}, 2)\n")
    pid = processes.start(("tests.test_ddp", "launch"), tmp_path / "log", folder=str(tmp_path), script=str(script))
    assert processes.wait(pid, seconds=500) == 0, (tmp_path / "log").read_text()[-3000:]
    log = (tmp_path / "log").read_text()
    assert "Starting with 2 processes" in log and "sync_dist" not in log
    for mine, theirs in zip(seen(tmp_path), seen(pair), strict=True):
        assert_same(mine["weights"], theirs["weights"])
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))
