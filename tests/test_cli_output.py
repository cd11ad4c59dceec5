"""What commands show: one table, bars with names, where the results lie; on a terminal, in a log, and to Python."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from tests.processes import Processes
from tests.terminals import ERASE, run_on_terminal, states
from tests.test_cli import TINY

FUNCTION = ("tests.test_cli_output", "train_validate_predict")
NOISE = ("Tip", "TPU", "GPU available", "Seed set", "DataLoader", "deprecated", "FLOPs", ".py", "Traceback")


def train_validate_predict(folder: str) -> None:
    """Run three commands as a reader of README does, in `folder`."""
    os.chdir(folder)
    trainer: Any = TINY["trainer"]
    bars = {"enable_progress_bar": True, "limit_val_batches": 2, "val_check_interval": 4}
    model: Any = TINY["model"]
    arguments = model["init_args"] | {"prediction": {"num_samples": 6, "batch_size": 2}}
    settings = TINY | {"trainer": trainer | bars, "model": model | {"init_args": arguments}}
    Path("tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    main(["fit", "-c", "tiny.yaml", "--trainer.default_root_dir", "run"])
    main(["validate", "run"])
    main(["predict", "run"])


def closing_lines(text: str) -> dict[str, str]:
    """Return the last line of each command."""
    return dict(re.findall(r"(\w+) has ended; (.*)", text))


def check_closing_lines(text: str) -> None:
    said = closing_lines(text)
    assert list(said) == ["fit", "validate", "predict"]
    assert "model in run/snapshots" in said["fit"] and said["fit"].endswith("config run/config.yaml")
    assert said["validate"] == "metrics in run/report; config run/config.validate.yaml"
    assert said["predict"] == "samples in run/samples/unguided-seed0; config run/config.predict.yaml"


def test_a_log_has_a_table_and_the_places_and_no_noise(tmp_path: Path, processes: Processes) -> None:
    log = tmp_path / "log"
    processes.call(FUNCTION, log, folder=str(tmp_path))
    text = log.read_text()
    assert "\r" not in text and "\x1b" not in text and not [word for word in NOISE if word in text], text
    assert len(text.splitlines()) < 30, text
    check_closing_lines(text)
    assert re.search(r"^validate: held-out loss, unguided, auto, \d+ batches$", text, re.M), text
    assert re.search(r"^predict: \d+ batches$", text, re.M) and "\ntest: " not in text
    assert text.count("\nevaluation ") == 2 and "held-out loss: " in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("unguided ", "auto "))]
    assert [row[0] for row in rows] == ["unguided", "auto"] * 2  # the first one is the baseline
    assert (tmp_path / "run/samples/unguided-seed0/samples.png").is_file()
    assert max(len(number) for row in rows for number in row[1:]) <= 9  # four significant digits


def test_a_terminal_has_bars_with_the_names_of_evaluations(tmp_path: Path, processes: Processes) -> None:
    text = run_on_terminal(processes, FUNCTION, folder=str(tmp_path))
    found = states(text)
    shown = " | ".join(found)
    for name in (
        "loads the libraries ...",
        "training  [#",
        "4/4 steps",
        "validate held-out loss",
        "validate auto (2 of 2)",
        "predict  [#",
        "left",
    ):
        assert name in shown, shown
    assert not [word for word in NOISE if word in shown] and max(map(len, found[1:-1])) < 200
    bars = [state for state in found if "[" in state and "has ended" not in state]
    assert max(map(len, bars)) < 60
    check_closing_lines(text.replace(ERASE, "\n"))


def test_warnings_and_loggers_of_python_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]

    def state() -> Any:
        handlers = [(h, list(h.filters), h.formatter) for logger in loggers for h in logger.handlers]
        return warnings.formatwarning, warnings.showwarning, list(warnings.filters), handlers

    before = state()
    with pytest.raises(SystemExit):
        main(["report", "missing"])
    assert state() == before


def without_a_reader(folder: str) -> None:
    """The same, with output into pipes that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    for number in (1, 2):
        os.dup2(writing, number)
    train_validate_predict(folder)


def test_output_that_nobody_reads_loses_nothing(tmp_path: Path, processes: Processes) -> None:
    process = processes.start(("tests.test_cli_output", "without_a_reader"), tmp_path / "log", folder=str(tmp_path))
    assert processes.wait(process) in (0, 120)  # 120: what is left in the buffer of stdout cannot be written
    assert (tmp_path / "run/samples/unguided-seed0/samples.png").is_file()
    assert "unguided" in (tmp_path / "run/report/metrics.json").read_text()
