"""SIMS by one command: synthesize, retrain, evaluate; interrupted, and with errors in its config."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_guide.cli import main
from lightning_guide.runs.models import finished_model, open_snapshots, pretrained
from tests.processes import Processes, kill
from tests.runs import assert_same, snapshots
from tests.test_cli import TINY, failure, guide

BASE: dict[str, Any] = {"class_path": "Snapshot", "init_args": {"run": "base", "images": "1/1", "sigma_rel": 0.05}}
AUXILIARY: dict[str, Any] = {"class_path": "Snapshot", "init_args": {"images": 16, "sigma_rel": 0.05}}
DRAWN: dict[str, Any] = {
    "num_samples": 5,
    "sampler": {
        "class_path": "lightning_guide.samplers.Euler",
        "init_args": {"grid": {"class_path": "lightning_guide.noise.KarrasGrid", "init_args": {"num_steps": 3}}},
    },
}


def settings() -> dict[str, Any]:
    """Return the base's config with its samples as data, and its average as the model."""
    sims: dict[str, Any] = copy.deepcopy(TINY)
    sims["trainer"] |= {"default_root_dir": "sims", "max_steps": 6, "val_check_interval": 6, "limit_val_batches": 1.0}
    sims["trainer"]["callbacks"] = [
        {"class_path": "PostHocEMA", "init_args": {"every_images": 48}},
        {"class_path": "BudgetSnapshots", "init_args": {"budgets": [16, 32]}},
        {"class_path": "RunCheckpoint", "init_args": {"every_steps": 2}},
        {"class_path": "MetricsReport"},
        {"class_path": "WeightCurves", "init_args": {"metric": "nfe"}},
    ]
    sims["model"]["init_args"] |= {
        "denoiser": {"class_path": "lightning_guide.runs.pretrained", "init_args": {"run": "base"}},
        "evaluations": {"base": DRAWN | {"guidance": BASE}},
        "guidances": {
            name: {"class_path": kind, "init_args": {"auxiliary": AUXILIARY, "base": BASE, "weight": weight}}
            for name, kind, weight in (("sims_1.5", "SIMS", 1.5), ("sims_2", "SIMS", 2), ("neon", "Neon", 1.5))
        },
    }
    sims["data"]["init_args"] |= {"heldout_size": 8, "training_size": 8}
    sims["data"] = {
        "class_path": "datamodules.SelfSynthesized",
        "init_args": {
            "data": sims["data"],
            "run": "base",
            "folder": "synthetic",
            "num_samples": 100,
            "chunk_size": 10,
            "sampler": DRAWN["sampler"],
            "batch_size": 8,
        },
    }
    return sims


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of 32 points."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    main(["fit", "-c", str(folder / "tiny.yaml"), "--trainer.default_root_dir", str(folder / "base")])
    return folder / "base"


@pytest.fixture
def base(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the run to `base`, and write `sims.yaml`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "base")
    Path("sims.yaml").write_text(yaml.safe_dump(settings()))
    return tmp_path / "base"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_command_synthesizes_retrains_and_evaluates(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(base)
    guide(monkeypatch, "fit", "-c", "sims.yaml")
    assert files(base) == before, "the base has changed"
    assert len(list(Path("synthetic").glob("*.tar"))) == 10
    assert sorted({entry.images for entry in open_snapshots("sims").entries()}) == [16, 32, 48]
    results = json.loads(Path("sims/report/metrics.json").read_text())
    assert {name: values["nfe"] for name, values in results.items()} == {
        "base": 3,
        "sims_1.5": 6,
        "sims_2": 6,
        "neon": 3,
    }
    assert Path("sims/report/curves_nfe.png").exists()
    shards = files(Path("synthetic"))
    guide(monkeypatch, "test", "-c", "sims/config.yaml")
    guide(monkeypatch, "neon", "base", "sims", "--auxiliary_images", 16, "--weight", 1.5)
    guide(monkeypatch, "predict", "-c", "base/config.yaml", "--trainer.default_root_dir", "base/neon")
    assert files(Path("synthetic")) == shards


def test_auxiliary_is_initialized_by_average_of_base(base: Path) -> None:
    """It is trainable, unlike the models of evaluations; at rate 0 it does not change."""
    initial, average = pretrained(str(base)), finished_model(base, None, 0.05)
    for one, other in zip(initial.parameters(), average.parameters(), strict=True):
        assert torch.equal(one, other) and one.requires_grad and not other.requires_grad
    assert initial.training and not average.training
    rate = {"class_path": "lightning_guide.training.ConstantRate", "init_args": {"peak": 1e-30}}
    sims = settings()
    sims["model"]["init_args"]["learning_rate"] = rate
    Path("still.yaml").write_text(yaml.safe_dump(sims))
    main(["fit", "-c", "still.yaml", "--trainer.limit_val_batches", "0"])
    for one, other in zip(finished_model("sims", 16, 0.05).parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def command(folder: str) -> None:
    """Run the command in `folder`."""
    os.chdir(folder)
    main(["fit", "-c", "sims.yaml"])


@pytest.mark.slow
def test_killed_while_sampling_and_training_reaches_same_weights(
    processes: Processes, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while sampling, then while training; then the same command runs to its end."""
    guide(monkeypatch, "fit", "-c", "sims.yaml")
    expected = snapshots("sims")
    samples = {path.name: content for path, content in files(Path("synthetic")).items()}
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    for name in ("base", "sims.yaml"):
        (resumed / name).symlink_to(tmp_path / name)
    for sign in ("synthetic/synthetic-000003.tar", "sims/checkpoints/step-000000002.ckpt"):
        pid = processes.start(("tests.test_sims", "command"), resumed / "log", folder=str(resumed))
        deadline = time.monotonic() + 60
        while not (resumed / sign).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        kill(pid)
        assert processes.wait(pid) == -9 and (resumed / sign).exists()
    assert not (resumed / "sims/report/metrics.json").exists()
    processes.call(("tests.test_sims", "command"), resumed / "log", folder=str(resumed))
    assert_same(snapshots(resumed / "sims"), expected)
    assert {path.name: content for path, content in files(resumed / "synthetic").items()} == samples


def test_scripts_refuse_results_of_other_settings(tmp_path: Path) -> None:
    written = importlib.import_module("scripts.lib.configs").write_settings
    config, done = tmp_path / "run/overlay.yaml", tmp_path / "run/done"
    written(config, {"steps": 1}, done=done)
    written(config, {"steps": 2}, done=done)  # nothing is finished yet
    done.touch()
    written(config, {"steps": 2}, done=done)
    with pytest.raises(SystemExit, match="was made with other settings than these"):
        written(config, {"steps": 3}, done=done)
    assert yaml.safe_load(config.read_text()) == {"steps": 2}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data.run", "elsewhere"), "run 'elsewhere' has no snapshots"),
        (("--data.batch_size", "5"), "the budget of 16 images does not end with a step"),
        (("--data.num_samples", "0"), "num_samples >= 1"),
        (("--data.classes", "[0.5, 0.5]"), "has no labels"),
        (("--data.guidance", "{class_path: SIMS, init_args: {weight: .inf, auxiliary: Main}}"), "finite weights"),
    ],
)
def test_config_errors_are_one_sentence(
    words: tuple[str, ...],
    expected: str,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = failure(monkeypatch, capsys, "fit", "-c", "sims.yaml", *words)
    assert expected in message and "Traceback" not in message
