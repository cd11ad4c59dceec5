"""The trials of damage find each kind of failure, and find none in the product."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.robustness import mutate as trials
from scripts.robustness.command_results import differences, read_results
from scripts.robustness.mutations import mutate
from scripts.robustness.readers import SUBJECTS
from scripts.robustness.subject import Subject

ROOT = Path(__file__).parents[1]

# of Python 3.12, if a library has started threads
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_damages_are_functions_of_their_seed() -> None:
    data = bytes(range(256)) * 4
    damages = [mutate(data, f"{i}") for i in range(200)]
    assert damages == [mutate(data, f"{i}") for i in range(200)] and all(data != each for _, each in damages)
    assert {kind for kind, _ in damages} == {"flip", "truncate", "insert", "swap", "overwrite"}


def make(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(b"whole" * 20)
    return folder / "a.bin"


def when_damaged(act: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: "whole" if path.read_bytes() == b"whole" * 20 else act(path)


def refuse(path: Path) -> None:
    raise ValueError(f"{path} is damaged")


def leak(path: Path) -> None:
    raise KeyError(path)


def unnamed(path: Path) -> None:
    raise ValueError("damaged")


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "checked", "column", "status"),
    [
        (refuse, False, "refused", 0),
        (lambda path: "whole", True, "equal", 0),
        (lambda path: "another", False, "changed", 0),
        (lambda path: "another", True, "silent", 1),
        (leak, False, "traceback", 1),
        (unnamed, False, "traceback", 1),
        (lambda path: os.system("true"), False, "executed", 1),
        (crash, False, "crash", 1),
    ],
)
def test_each_outcome_is_counted(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    act: Callable[[Path], Any],
    checked: bool,
    column: str,
    status: int,
) -> None:
    monkeypatch.setattr(trials, "SUBJECTS", {"odd": Subject(make, when_damaged(act), checked=checked)})
    with pytest.raises(SystemExit) as end:
        trials.main(count=3, batch=2)
    *_, header, row = [line.split() for line in capfd.readouterr().out.splitlines() if line[:4] in ("kind", "odd ")]
    assert end.value.code == status and dict(zip(header, row, strict=True))[column] == "3"


@pytest.mark.slow
def test_a_few_damaged_files_of_every_kind(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        trials.main(count=2 * len(SUBJECTS), seed=3)
    assert end.value.code == 0, capfd.readouterr().out


@pytest.mark.slow
def test_a_thousand_damaged_files(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        trials.main(count=1000)
    assert end.value.code == 0, capfd.readouterr().out


def test_results_of_commands_are_compared_without_times(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"seconds": 1, "fd": [2, 3], "cfg/seconds": 4}')
    one = read_results(tmp_path)
    (tmp_path / "a.json").write_text('{"seconds": 9, "fd": [2, 3], "cfg/seconds": 8}')
    assert not differences(one, read_results(tmp_path))
    (tmp_path / "a.json").write_text('{"seconds": 1, "fd": [2, 4]}')
    (tmp_path / ".b.tar.0.tmp").touch()
    found = differences(read_results(tmp_path), one)
    assert found == ["/.b.tar.0.tmp (.b.tar.0.tmp, expected None)", "/a.json/0/fd/1 (4, expected 3)"]


@pytest.mark.slow
def test_commands_of_every_kind_that_are_killed_end_with_the_same_results() -> None:
    """In a process of its own: after a test on the emulated device, autograd refuses to train in a fork."""
    script = [sys.executable, "-m", "scripts.robustness.kill", "--count", "9", "--seed", "11"]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1].split()[-2:] == ["9", "0"], ended
