"""Progress on a terminal and in a log: estimates, resumed work, few lines; commands of data and searches show it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_guide.cli import main
from lightning_guide.evaluation import RawPixels
from lightning_guide.utils.terminal import Progress
from tests.processes import Processes
from tests.searches import search
from tests.terminals import ERASE, run_on_terminal, states

HERE = "tests.test_utils_terminal"


def count(total: int, skipped: int, seconds: float) -> None:
    """Count to `total`, of which `skipped` took no time."""
    with Progress("counting", total, unit="things") as bar:
        bar.skip(skipped)
        for number in range(skipped, total):
            time.sleep(seconds)
            bar.add(note=f"newest {number}")
        time.sleep(0.01)


def test_on_a_terminal_one_line_is_rewritten_and_erased(processes: Processes) -> None:
    text = run_on_terminal(processes, (HERE, "count"), total=40, skipped=30, seconds=0.12)
    assert "\n" not in text and text.endswith(ERASE)
    shown = states(text)[1:-1]
    assert re.match(r"counting  \[############....\]  31/40 things  0:0\d  newest", shown[0] + "  newest")
    assert shown[-1].startswith("counting  [################]  40/40 things  0:0") and "0:00 left" in shown[-1]
    assert all(len(line) < 60 for line in shown) and len(shown) <= 11


@pytest.mark.parametrize("environment", [{"TERM": "xterm"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}])
def test_a_log_of_short_work_is_empty(tmp_path: Path, processes: Processes, environment: dict[str, str]) -> None:
    log = tmp_path / "log"
    arguments: dict[str, Any] = {"total": 200, "skipped": 0, "seconds": 0.001}
    assert processes.wait(processes.start((HERE, "count"), log, environment=environment, **arguments)) == 0
    assert log.read_text() == ""


def test_a_log_of_long_work_has_few_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("fitting", 86400, unit="steps", done=0) as bar:
        for _ in range(86400):  # a day
            clock[0] += 1.0
            bar.add()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fitting  10/86400 steps  0:10, 23:59:50 left" and lines[1].startswith("fitting  40/86400 ")
    assert 50 < len(lines) < 200 and not any("\r" in line or "\x1b" in line for line in lines)


def test_preparations_do_not_count_in_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("training", 1000, unit="steps", done=100) as bar:
        for seconds in (60.0, 0.1, *[0.25] * 170):  # compilation, a step ahead of the device, then its pace
            clock[0] += seconds
            bar.add()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training  101/1000 steps  1:00"
    minutes, rest = re.findall(r", (\d+):(\d+) left", lines[1])[0]
    assert abs(60 * int(minutes) + int(rest) - 0.25 * (1000 - 221)) < 10


def convert(source: str, folder: str) -> None:
    """Convert images on a slow disk, in shards of 4."""
    from datamodules.commands import convert as module

    decode = module.decode_image

    def slowly(data: bytes) -> Any:
        time.sleep(0.05)
        return decode(data)

    module.decode_image = slowly
    main(["convert", source, folder, "--records_per_shard", "4"])


def test_convert_shows_progress(tmp_path: Path, processes: Processes) -> None:
    for i in range(12):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(path)
    text = run_on_terminal(processes, (HERE, "convert"), source=str(tmp_path / "images"), folder=str(tmp_path / "out"))
    assert any(" images  0:00, 0:00 left" in state for state in states(text)), text
    assert "12 images of 2 classes in 3 shards" in text.splitlines()[-1]


def statistics(out: str) -> None:
    """Store statistics by a slow extractor."""
    extract = RawPixels.extract

    def slowly(self: RawPixels, x: Any) -> Any:
        time.sleep(0.2)
        return extract(self, x)

    RawPixels.extract = slowly  # type: ignore[method-assign]
    main(["statistics", out, "--data", "Digits", "--data.batch_size", "500", "--extractor", "RawPixels"])


def test_statistics_shows_progress(tmp_path: Path, processes: Processes) -> None:
    text = run_on_terminal(processes, (HERE, "statistics"), columns=100, out=str(tmp_path / "s.npz"))
    shown = [re.sub(r"  +0:.*", "", state) for state in states(text)]
    assert any(state.startswith("statistics, reading  ") for state in shown), text
    assert "statistics  [################]  1437/1437 examples" in shown, text
    assert "s.npz: 1,437 examples" in text.splitlines()[-1]


def tune(folder: str) -> None:
    """Find the better of two weights."""
    changes = {"axes": {"weight": {"path": "guidance.init_args.weight", "values": [3, 4]}}}
    search(Path(folder), "tune", "tune_terminal", "--budget", "320", changes=changes)


def test_a_tuner_shows_progress_and_the_best_so_far(search_folder: Path, processes: Processes) -> None:
    text = run_on_terminal(processes, (HERE, "tune"), columns=200, folder=str(search_folder))
    shown = [state for state in states(text) if state.startswith("tune  [")]
    assert shown[0].count(" samples") and any(" left" in state for state in shown), text
    assert any("  best: fd -" in state or "  best: fd +" in state for state in shown), shown
    assert "; recall " in shown[-1] and " at " in shown[-1]  # the best point depends on the last digits
    last = text.splitlines()[-1]
    assert "guidance to be used with -c: " in last and "fd.yaml" in last and "tune.json" in last, text
