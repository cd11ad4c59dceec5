"""Scalars of a run from its own file, from TensorBoard and from CSV files: the same curves from each."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from callbacks import MetricsReport, RunCheckpoint, RunReport
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.optimization.round_buffers import append_record, read_records
from lightning_guide.report.history import (
    HISTORY,
    append_scalars,
    event_files,
    keep_earlier_scalars,
    read_history,
    read_rounds,
)
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.training.learning_rate import InverseSqrtRate
from tests.event_files import shown
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer


def strict(text: str) -> list[object]:
    """Parse JSON lines without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_what_is_appended_is_read_with_resumes_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    for step in (2, 4, 6):
        append_scalars(path, {"train/loss": 1.0 / step, "images_seen": 8 * step}, step=step)
    append_scalars(path, {"cfg/fd": 3.0, "cfg/odd": math.inf}, step=6)
    with path.open("a") as file:
        file.write('{"step": 7, "val')  # killed here
    append_scalars(path, {}, step=4, resumes=True)
    append_scalars(path, {"train/loss": 0.2, "images_seen": 40}, step=5)
    strict("\n".join(line for line in path.read_text().splitlines() if not line.endswith('"val')))
    history = read_history(tmp_path)
    assert history.scalars == {"train/loss": [(16.0, 0.5), (32.0, 0.25), (40.0, 0.2)]}
    assert history.x_label == "images seen"
    append_scalars(path, {"train/loss": 0.1}, step=2)  # without a mark, as a point behind a curve
    assert read_history(tmp_path).scalars["train/loss"] == [(16.0, 0.1)]


def test_lines_that_were_changed_by_hand_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    for step in (1, 2, 3, 4):
        append_scalars(path, {"train/loss": 1.0 / step}, step=step)
    lines = path.read_text().splitlines()
    older = {key: value for key, value in json.loads(lines[0]).items() if key != "crc32"}
    path.write_text("\n".join([json.dumps(older), lines[1].replace("0.5", "0.4"), lines[2], lines[3][1:]]) + "\n")
    with pytest.warns(UserWarning) as said:
        history = read_history(tmp_path)
    assert history.scalars == {"train/loss": [(1.0, 1.0), (3.0, 1 / 3)]}
    sentence = f"{path}, line %d, was changed after it was written; it is left out"
    assert [str(each.message) for each in said] == [sentence % 2, sentence % 4]


@pytest.mark.parametrize("kind", ["none", "csv", "tensorboard"])
def test_a_fit_with_any_logger_has_the_same_history(tmp_path: Path, kind: str) -> None:
    reference = run(tmp_path / "reference", None)
    loggers = {
        "none": lambda: None,
        "csv": lambda: CSVLogger(str(tmp_path / "run"), name="logs"),
        "tensorboard": lambda: TensorBoardLogger(str(tmp_path / "run"), name="tensorboard", version=""),
    }
    expected = read_history(reference)
    found = run(tmp_path / "run", loggers[kind])
    assert len(expected.scalars["train/loss"]) == 6
    assert [x for x, _ in expected.scalars["plain/fd"] or []] == [16.0, 32.0, 48.0]
    assert _measured(read_history(found).scalars) == _measured(expected.scalars)
    if kind != "none":  # a run without the file
        (found / HISTORY).unlink()
        copied = read_history(found)
        assert _measured(copied.scalars) == _measured(expected.scalars) and copied.x_label == "images seen"
        keep_earlier_scalars(found)
        assert read_history(found).scalars.keys() == copied.scalars.keys()


def run(folder: Path, logger: object) -> Path:
    """Train eight steps, then resume to twelve."""
    for steps in (8, 12):
        options = {"limit_val_batches": 1.0, "val_check_interval": 4, "log_every_n_steps": 2}
        chosen = logger() if callable(logger) else False
        trainer = tiny_trainer(
            folder, MetricsReport(), RunReport(), RunCheckpoint(4), steps=steps, logger=chosen, **options
        )
        module = tiny_module(
            average=None, evaluations={"plain": evaluation(metrics={"fd": FrechetDistance(RawPixels())})}
        )
        trainer.fit(module, datamodule=TinyImages(), ckpt_path=newest_checkpoint(folder), weights_only=True)
    return folder


@pytest.mark.filterwarnings("ignore:the page of this run was not written")  # without a config
def test_going_back_keeps_both_lines_of_the_history(tmp_path: Path) -> None:
    folder, curves = tmp_path / "run", {}
    for name, steps in (("first", 4), ("straight", 12), ("back", 8)):
        checkpoint = newest_checkpoint(folder)
        if name == "straight":
            shutil.copy(checkpoint or "", tmp_path / "step4.ckpt")
        module = tiny_module(average=None, learning_rate=InverseSqrtRate(0.05 if name == "back" else 0.01))
        trainer = tiny_trainer(folder, RunReport(), RunCheckpoint(4), steps=steps, log_every_n_steps=2)
        chosen = tmp_path / "step4.ckpt" if name == "back" else checkpoint
        trainer.fit(module, datamodule=TinyImages(), ckpt_path=chosen, weights_only=True)
        curves[name] = read_history(folder).scalars["train/loss"]
    assert [x for x, _ in curves["straight"]] == [8.0, 16.0, 24.0, 32.0, 40.0, 48.0]
    assert [x for x, _ in curves["back"]] == [8.0, 16.0, 24.0, 32.0]
    assert curves["back"][:2] == curves["straight"][:2] and curves["back"][2:] != curves["straight"][2:4]
    assert read_history(folder / "branches/1").scalars["train/loss"] == curves["straight"]


def _measured(scalars: dict) -> dict:
    """The curves without times, to the digits that TensorBoard stores."""
    kept = {tag: points for tag, points in scalars.items() if not tag.endswith(("seconds", "epoch"))}
    return {tag: [(x, float(f"{y:.5g}")) for x, y in points] for tag, points in sorted(kept.items())}


def test_numbers_of_rounds_that_are_not_finite_are_null(tmp_path: Path) -> None:
    append_record(tmp_path, {"round": 0, "objective": math.nan, "nfe": 3.0}, first=True)
    append_record(tmp_path, {"round": 1, "objective": 2.0, "nfe": 3.0}, first=False)
    strict((tmp_path / "rounds/history.jsonl").read_text())
    first, second = read_records(tmp_path, 2)
    assert math.isnan(first["objective"]) and second["objective"] == 2.0
    rounds = read_rounds(tmp_path)
    assert rounds.scalars == {"rounds/objective": [(1.0, 2.0)], "rounds/nfe": [(0.0, 3.0), (1.0, 3.0)]}
    assert rounds.x_label == "rounds"


def test_evaluations_that_old_versions_logged_at_step_0_are_left_out(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        for step, value in ((10, 4.0), (30, 1.25), (0, 9.0)):
            writer.add_scalar("plain/fd", value, step)
    assert read_history(tmp_path).scalars == {"plain/fd": [(10, 4.0), (30, 1.25)]}


def test_the_tenth_file_of_a_second_comes_after_the_ninth(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    for number, value in ((9, 4.0), (10, 1.25)):
        with SummaryWriter(str(tmp_path / "written")) as writer:
            writer.add_scalar("plain/fd", value, 10)
        folder.mkdir(exist_ok=True)
        (written,) = (tmp_path / "written").iterdir()
        written.rename(folder / f"events.out.tfevents.1700000000.host.7.{number}")
    assert [file.suffix for file in event_files(folder)] == [".9", ".10"]
    assert read_history(tmp_path).scalars == {"plain/fd": [(10, 1.25)]}
    assert shown(folder) == {"plain/fd": [(10, 1.25)]}
