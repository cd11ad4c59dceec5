"""SIGKILL at random times during both algorithms of gradient guidance: resumed runs end with the same samples."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch

from tests.processes import Processes, kill
from tests.runs import checkpoint

ROUNDS, STEPS = 12, 24


def _history(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "rounds/history.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def _until_done(processes: Processes, folder: Path, name: str, seed: int, **arguments: object) -> int:
    """Restart the function until it ends by itself; return the number of kills.

    Each kill waits for some more rounds and then for a random time, so that it works on fast and slow machines alike.
    """
    folder.mkdir()
    draw, killed, rounds = random.Random(seed), 0, 0
    while True:
        pid = processes.start(
            ("tests.test_ddp_gradient", name), folder / "log", folder=str(folder), world=1, **arguments
        )
        if killed < 3:
            rounds += draw.randint(1, 3)
            deadline = time.monotonic() + 60
            while _rounds(folder) < rounds and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.02))
            kill(pid)
        status = processes.wait(pid)
        if status == 0:
            return killed
        assert status == -9, (folder / "log").read_text()[-2000:]
        killed += 1


def _rounds(folder: Path) -> int:
    """Return the number of lines of the history."""
    path = folder / "rounds/history.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_algorithm_1_killed_at_random_times_ends_with_the_same_rounds(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    arguments = {"at": "mean", "rounds": ROUNDS}
    call = ("tests.test_ddp_gradient", "optimize")
    processes.wait(processes.start(call, tmp_path / "log", folder=str(tmp_path / "whole"), world=1, **arguments))
    assert _until_done(processes, tmp_path / "killed", "optimize", 1, **arguments) >= 1
    whole = _history(tmp_path / "whole")
    assert _history(tmp_path / "killed") == whole and len(whole) == ROUNDS


def test_fine_tuning_killed_at_random_times_ends_bitwise_equal(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    call = ("tests.test_ddp_gradient", "fine_tune")
    arguments = {"steps": STEPS, "every": 3}
    processes.wait(processes.start(call, tmp_path / "log", folder=str(tmp_path / "whole"), world=1, **arguments))
    assert _until_done(processes, tmp_path / "killed", "fine_tune", 2, **arguments) >= 1
    whole = _history(tmp_path / "whole")
    assert _history(tmp_path / "killed") == whole and len(whole) == STEPS // 2
    one, other = (checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
