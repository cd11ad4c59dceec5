"""Logs of one command survive every other one, in the folders of the run's own and of configured loggers."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_guide.cli import main
from lightning_guide.runs.log_folders import use_own_folder
from tests.event_files import opened, shown

ROOT = Path(__file__).parent.parent
FRECHET = {"class_path": "FrechetDistance", "init_args": {"extractor": {"class_path": "RawPixels"}}}
SAMPLER = {"class_path": "Euler", "init_args": {"grid": {"class_path": "KarrasGrid", "init_args": {"num_steps": 2}}}}
EVALUATION = {"num_samples": 12, "batch_size": 12, "sampler": SAMPLER}
GUIDED = {"guidance": {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 2}}}
SILENT = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}


def config(folder: Path, **trainer: Any) -> Path:
    """Write a config of four steps on 8x8 digits; snapshots after 8, 16, 24 and 32 images."""
    network = {"data_shape": [1, 8, 8], "num_classes": 10, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    written = {
        "base": [str(ROOT / "configs/base/edm.yaml"), str(ROOT / "configs/base/callbacks.yaml")],
        "trainer": SILENT
        | {"max_steps": 4, "val_check_interval": 2, "default_root_dir": str(folder / "run")}
        | trainer,
        "model": {
            "init_args": {
                "denoiser": {"init_args": {"network": {"init_args": network | {"attention_resolutions": []}}}},
                "label_dropout": 0.1,
                "metrics": {"fd": FRECHET},
                "evaluations": {"unguided": EVALUATION, "cfg": EVALUATION | GUIDED},
            }
        },
        "data": {"class_path": "Digits", "init_args": {"batch_size": 8}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(written))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("fitted")
    main(["fit", "-c", str(config(folder))])
    return folder / "run"


@pytest.mark.parametrize(
    ("command", "images"), [("validate", 8), *(pytest.param("test", n, marks=pytest.mark.slow) for n in (32, 8))]
)
def test_curves_of_a_fit_survive_evaluations_which_are_at_the_step_of_their_snapshot(
    fitted: Path, command: str, images: int
) -> None:
    before, step = shown(fitted / "tensorboard"), images // 8
    assert [at for at, _ in before["cfg/fd"]] == [2, 4] and len(before["train/loss"]) == 4
    main([command, "-c", str(fitted / "config.yaml"), "--model.images", str(images)])
    newest = max((fitted / "tensorboard").glob(f"{command}_*"), key=lambda path: int(path.name.partition("_")[2]))
    found, log = shown(newest), opened(newest)
    assert [at for at, _ in found["cfg/fd"]] == [step] and found["images_seen"] == [(step, images)]
    assert [event.step for event in log.Images("samples/cfg")] == [step]
    assert [event.step for event in log.Tensors("report/metrics/text_summary")] == [step]
    assert (fitted / "grids" / f"{command}-{images}-cfg.png").is_file()
    assert shown(fitted / "tensorboard") == before
    written = json.loads((fitted / "report/metrics.json").read_text())
    assert found["cfg/fd"][0][1] == pytest.approx(written["cfg"]["fd"])


@pytest.mark.slow
def test_a_resumed_fit_continues_its_curves(tmp_path: Path) -> None:
    path = config(tmp_path)
    main(["fit", "-c", str(path)])
    main(["test", "-c", str(tmp_path / "run/config.yaml")])
    before = shown(tmp_path / "run/tensorboard")
    main(["fit", "-c", str(path), "--trainer.max_steps", "6"])
    after = shown(tmp_path / "run/tensorboard")
    for tag in ("train/loss", "cfg/fd", "heldout/sigma_1", "images_seen"):
        assert after[tag][: len(before[tag])] == before[tag] and after[tag][-1][0] == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
def test_loggers_with_a_fixed_folder_keep_the_logs_in_it(tmp_path: Path, kind: str) -> None:
    logger = {"class_path": kind, "init_args": {"save_dir": str(tmp_path / "logs"), "name": "", "version": "mine"}}
    path = config(tmp_path, logger=[logger])
    main(["fit", "-c", str(path)])
    folder = tmp_path / "logs/mine"
    before = _curve(folder, kind)
    assert len(before) == 2
    main(["validate", "-c", str(path), "--model.images", "8"])
    assert _curve(folder, kind) == before and len(_curve(folder / "validate_0", kind)) == 1
    main(["fit", "-c", str(path), "--trainer.max_steps", "6"])
    assert _curve(folder, kind)[:2] == before
    added = _curve(folder / "fit_0", kind) if kind == "CSVLogger" else _curve(folder, kind)[2:]
    assert [step for step, _ in added] == [6]


def _curve(folder: Path, kind: str) -> list[tuple[int, float]]:
    if kind == "TensorBoardLogger":
        return shown(folder)["cfg/fd"]
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["cfg/fd"])) for row in csv.DictReader(file) if row["cfg/fd"]]


def test_two_commands_at_once_get_two_folders(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(str(tmp_path), name="tensorboard", version="") for _ in range(3)]
    for logger in loggers:
        use_own_folder(logger, "test")
    assert [Path(logger.log_dir).name for logger in loggers] == ["test_0", "test_1", "test_2"]
    numbered = CSVLogger(str(tmp_path))
    use_own_folder(numbered, "test")
    assert Path(numbered.log_dir).name == "version_0"  # numbers its folders itself


def test_a_fit_continues_event_files_but_begins_another_csv_file(tmp_path: Path) -> None:
    for kind, expected in ((TensorBoardLogger, ["mine", "mine"]), (CSVLogger, ["mine", "fit_0"])):
        folders = []
        for step in (1, 2):
            logger = kind(str(tmp_path / kind.__name__), name="", version="mine")
            use_own_folder(logger, "fit")
            logger.log_metrics({"cfg/fd": float(step)}, step)
            logger.finalize("success")
            folders.append(Path(logger.log_dir).name)
        assert folders == expected
    assert shown(tmp_path / "TensorBoardLogger/mine")["cfg/fd"] == [(1, 1.0), (2, 2.0)]
    assert _curve(tmp_path / "CSVLogger/mine", "CSVLogger") == [(1, 1.0)]


@pytest.mark.slow
def test_the_server_of_tensorboard_shows_all_curves_and_each_metric_on_one_chart(fitted: Path) -> None:
    before = shown(fitted / "tensorboard")
    main(["test", "-c", str(fitted / "config.yaml"), "--model.images", "8"])
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(fitted / "tensorboard"), "--port", "0"]
    with subprocess.Popen([*words, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
            while "." not in (runs := _get(f"{address}/data/runs")):
                time.sleep(0.2)  # it reads the files after it says that it is ready
            assert any(name.startswith("test_") for name in runs)
            curve = _get(f"{address}/data/plugin/scalars/scalars?run=.&tag=cfg%2Ffd")
            assert [(step, pytest.approx(value)) for _, step, value in curve] == before["cfg/fd"]
            (category,) = _get(f"{address}/data/plugin/custom_scalars/layout")["category"]
            (pattern,) = category["chart"][0]["multiline"]["tag"]
            found = _get(f"{address}/data/plugin/custom_scalars/scalars?run=.&tag={quote(pattern)}")
            assert category["chart"][0]["title"] == "fd"
            assert sorted(found["tag_to_events"]) == ["cfg/fd", "unguided/fd"]
        finally:
            server.terminate()


def _get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)
