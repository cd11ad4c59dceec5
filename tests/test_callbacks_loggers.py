"""Images, tables, texts and settings in every kind of logger, read back from its files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from callbacks import MetricsReport, PostHocEMA, RunReport, SampleGrid
from lightning_guide.evaluation import FrechetDistance, RawPixels
from tests.event_files import opened
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer

SETTINGS = {"seed_everything": 5, "model": {"width": 8, "names": ["a"]}, "data": {"path": "x"}}


def fit(folder: Path, logger: Any) -> None:
    """Train eight steps with two validations, with every callback that logs."""
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    evaluations = {"plain": evaluation(metrics={"fd": FrechetDistance(RawPixels())}), "w=2, odd": evaluation()}
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 4, "log_every_n_steps": 2}
    trainer = tiny_trainer(folder, PostHocEMA(8), MetricsReport(), SampleGrid(4), RunReport(), logger=logger, **options)
    trainer.fit(tiny_module(average=0.05, evaluations=evaluations), datamodule=TinyImages())


def test_tensorboard_takes_all(tmp_path: Path) -> None:
    fit(tmp_path, TensorBoardLogger(str(tmp_path), name="tensorboard", version="", default_hp_metric=False))
    log = opened(tmp_path / "tensorboard")
    assert [event.step for event in log.Images("samples/plain")] == [4, 8]
    texts = ["report/metrics", "report/environment", "report/settings/config"]
    assert {f"{tag}/text_summary" for tag in texts} <= set(log.Tags()["tensors"])
    assert not any(tag.startswith("final/") for tag in log.Tags()["scalars"])  # one name for one number
    hparams = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"model.width" in hparams and b"data.path" in hparams
    (layout,) = log.Tensors("custom_scalars__config__")
    assert rb"(?!final/).*/fd$" in layout.tensor_proto.string_val[0]


def test_csv_takes_scalars_and_settings_and_files_hold_the_rest(tmp_path: Path) -> None:
    fit(tmp_path, CSVLogger(str(tmp_path), name="logs"))
    with (tmp_path / "logs/version_0/metrics.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row["plain/fd"])) for row in csv.DictReader(file) if row["plain/fd"]]
    assert [step for step, _ in rows] == [4, 8]
    assert yaml.safe_load((tmp_path / "logs/version_0/hparams.yaml").read_text())["data.path"] == "x"
    assert _files_of(tmp_path)["plain"]["fd"] == pytest.approx(rows[-1][1])


def test_without_a_logger_files_hold_all(tmp_path: Path) -> None:
    fit(tmp_path, False)
    assert _files_of(tmp_path)["plain"]["fd"] > 0


def test_several_loggers_take_the_same(tmp_path: Path) -> None:
    fit(tmp_path, [CSVLogger(str(tmp_path), name="logs"), TensorBoardLogger(str(tmp_path), name="t", version="")])
    assert (tmp_path / "logs/version_0/metrics.csv").is_file()
    assert len(opened(tmp_path / "t").Images("samples/plain")) == 2


def test_a_logger_that_takes_scalars_alone_gets_nothing_else(tmp_path: Path) -> None:
    class Scalars(Logger):
        name = version = "scalars"

        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[str, float] = {}

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.seen |= metrics

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            self.settings = params

    logger = Scalars()
    fit(tmp_path, logger)
    assert logger.seen["plain/fd"] == pytest.approx(_files_of(tmp_path)["plain"]["fd"])
    assert logger.settings["model.width"] == 8


def _files_of(run: Path) -> Any:
    """Check that the run folder has images, table and page with curves; return the table."""
    assert np.asarray(Image.open(run / "grids/fit-32-plain.png")).shape[2] == 3
    page = (run / "report.html").read_text()
    assert ">training loss</text>" in page and ">fd</text>" in page
    return json.loads((run / "report/metrics.json").read_text())


def test_wandb_takes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=str(tmp_path), offline=True, project="tests")
    fit(tmp_path, logger)
    assert logger.experiment.config["model.width"] == 8
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert summary["plain/fd"] == pytest.approx(_files_of(tmp_path)["plain"]["fd"])
    assert {"samples/plain", "samples/w=2, odd", "report/metrics", "report/environment"} <= summary.keys()
    assert [*tmp_path.glob("wandb/offline-run-*/files/media/images/samples/plain_*.png")]
    assert [*tmp_path.glob("wandb/offline-run-*/files/media/table/report/metrics_*.table.json")]


@pytest.mark.filterwarnings("ignore")  # of the library, about its store of files
def test_mlflow_takes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
    fit(tmp_path, logger)
    client, run = logger.experiment, str(logger.run_id)
    found = client.get_run(run).data
    assert found.metrics["plain/fd"] == pytest.approx(_files_of(tmp_path)["plain"]["fd"])
    assert found.params["model.width"] == "8"
    assert [each.step for each in client.get_metric_history(run, "plain/fd")] == [4, 8]
    artifacts = [each.name for each in (tmp_path / "mlruns").rglob("artifacts/**/*") if each.is_file()]
    assert sum(re.match(r"samples.plain.*\.png$", name) is not None for name in artifacts) == 2
    assert "000000008.md" in artifacts
