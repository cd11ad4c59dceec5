"""The command line: what a run leaves behind, what beats what, and mistakes that end in one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its logger keeps the stream of the first import, which no test may close
import pytest
import yaml

from lightning_guide.cli import COMMANDS, main
from lightning_guide.runs.models import open_snapshots

TINY = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 4,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "PostHocEMA", "init_args": {"every_images": 16}},
            {"class_path": "MetricsReport"},
        ],
    },
    "model": {
        "class_path": "DiffusionModule",
        "init_args": {
            "denoiser": {"class_path": "LogDensityMLP", "init_args": {"width": 8}},
            "loss": {"class_path": "ScoreMatchingLoss"},
            "evaluations": {
                "unguided": {"num_samples": 5},
                "auto": {
                    "num_samples": 5,
                    "guidance": {
                        "class_path": "Autoguidance",
                        "init_args": {"guider": {"class_path": "Snapshot", "init_args": {"images": "1/2"}}},
                    },
                },
            },
        },
    },
    "data": {
        "class_path": "datamodules.Points",
        "init_args": {
            "distribution": {
                "class_path": "lightning_guide.distributions.GaussianMixture",
                "init_args": {"means": [[0.3, 0.2]], "covariances": [[[0.2, 0.0], [0.0, 0.1]]]},
            },
            "batch_size": 8,
        },
    },
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config in `tmp_path`/tiny.yaml whose run goes to `tmp_path`/run; the working folder is `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path / "run"


def guide(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Runs `lightning-guide WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["lightning-guide", *map(str, words)])
    main()


def fit(monkeypatch: pytest.MonkeyPatch, run: Path, *words: object) -> None:
    guide(monkeypatch, "fit", "-c", "tiny.yaml", "--trainer.default_root_dir", run, *words)


def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence a failing command ends with."""
    with pytest.raises(SystemExit) as left:
        guide(monkeypatch, *words)
    assert left.value.code not in (0, None)
    return f"{left.value.code}\n{capsys.readouterr().err}"


def test_fit_then_continue_then_test_in_one_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(monkeypatch, run)
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "checkpoints.json",
        "config.yaml",
        "snapshots",
        "tensorboard",
    ]
    fit(monkeypatch, run, "--trainer.max_steps", 6)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-000000004.ckpt",
        "step-000000006.ckpt",
    ]
    assert open_snapshots(run).entries()[-1].images == 48
    guide(monkeypatch, "test", "-c", run / "config.yaml")
    results = json.loads((run / "report/metrics.json").read_text())
    assert results["unguided"]["samples"] == results["auto"]["samples"] == 5
    assert (results["unguided"]["nfe"], results["auto"]["nfe"]) == (63, 126)
    assert (run / "config.test.yaml").exists()


def test_a_fit_that_continues_sums_its_checkpoint_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(monkeypatch, run)
    summed, test = [], zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: [summed.append(archive.filename), test(archive)][1])
    fit(monkeypatch, run, "--trainer.max_steps", 6)
    assert summed == [str(run / "checkpoints/step-000000004.ckpt")]


def test_command_line_beats_config_and_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(monkeypatch, run)
    fit(monkeypatch, run, "--trainer.max_steps", 5, "--model.label_dropout", 0, "--model.seed", 7)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["seed"] == 7
    assert saved["trainer"]["max_steps"] == 5


def test_folder_of_a_run_takes_the_place_of_its_config(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fit(monkeypatch, run)
    copied = Path(shutil.copytree(run, run.with_name("copied")))
    Path("over.yaml").write_text("model: {init_args: {evaluations: {other: {num_samples: 2}}}}\n")
    guide(monkeypatch, "test", copied, "-c", "over.yaml")
    dropped = (
        f"over.yaml replaces evaluations auto, unguided of {copied}/config.yaml; inherit that by base to keep them"
    )
    assert caplog.messages.count(dropped) == 1
    assert json.loads((copied / "report/metrics.json").read_text())["other"]["samples"] == 2
    guide(monkeypatch, "fit", copied, "--trainer.max_steps", 6)
    assert open_snapshots(copied).entries()[-1].images == 48
    assert open_snapshots(run).entries()[-1].images == 32 and not (run / "report").exists()


def test_reconstruct(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fit(monkeypatch, run)
    guide(monkeypatch, "reconstruct", run, "[0.08]", "--max_error", "0.9")
    assert [entry.sigma_rel for entry in open_snapshots(run / "reconstructed").entries()] == [0.08]
    assert "available: images 16, 32" in failure(monkeypatch, capsys, "reconstruct", run, "[0.1]", "--images", "[77]")
    assert "elsewhere does not exist" in failure(monkeypatch, capsys, "reconstruct", "elsewhere", "[0.1]")
    (run.parent / "empty").mkdir()
    assert "has no snapshots" in failure(monkeypatch, capsys, "reconstruct", run.parent / "empty", "[0.1]")
    assert "no sigma_rel to rebuild was named" in failure(monkeypatch, capsys, "reconstruct", run, "[]")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model.learning_rat", "1"), "learning_rat"),
        (("--trainer.max_stepz", "1"), "max_stepz"),
        (("--model.label_dropout", "0.1"), "label_dropout=0.1 needs a model with labels"),
        (("--model.average", "0.07"), "no average with sigma_rel=0.07 is tracked; tracked: [0.05, 0.1]"),
        (("--model.denoiser.width", "0"), "width"),
        (("--data.batch_size", "0"), "batch_size is 0"),
        (("-c", "missing.yaml"), "missing.yaml"),
        (("--trainer.limit_val_batches", "1.5"), "invalid value 1.5 for limit_val_batches"),
    ],
)
def test_mistakes_name_what_is_wrong(
    words: tuple[str, ...],
    expected: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checked = ("--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1")
    said = failure(monkeypatch, capsys, "fit", "-c", "tiny.yaml", "--trainer.default_root_dir", run, *checked, *words)
    assert expected in said
    assert "Traceback" not in said


def test_run_folder_is_required(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "default_root_dir is not set" in failure(monkeypatch, capsys, "fit", "-c", "tiny.yaml")
    said = failure(monkeypatch, capsys, "fit", "-c", "tiny.yaml", "--trainer.default_root_dir", "tiny.yaml")
    assert "default_root_dir is the file tiny.yaml; expected the folder of the run" in said


def test_test_of_a_run_that_never_was(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failure(monkeypatch, capsys, "test", "-c", "tiny.yaml", "--trainer.default_root_dir", run)
    assert "has no snapshots" in said and "runs with snapshots" in said


def test_help_names_all_commands_in_a_process_of_its_own() -> None:
    words = [sys.executable, "-m", "lightning_guide.cli", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=True)
    for name in ("fit", "validate", "test", "predict", *COMMANDS):
        assert name in done.stdout


def test_continuing_needs_a_whole_checkpoint_of_the_same_model(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(monkeypatch, run)
    again = ("fit", "-c", "tiny.yaml", "--trainer.default_root_dir", run, "--trainer.max_steps", 6)
    said = failure(monkeypatch, capsys, *again, "--model.denoiser.width", 16)
    assert "step-000000004.ckpt holds another model" in said and "stored (" in said
    checkpoint = run / "checkpoints/step-000000004.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert "step-000000004.ckpt is damaged" in failure(monkeypatch, capsys, *again)


def test_mistakes_in_a_config_end_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run.parent / "tiny.yaml").read_text()
    for right, wrong, expected in (
        ("LogDensityMLP", "LogDensityMPL", "did you mean LogDensityMLP"),
        ("class_path: datamodules.Points", "class_path: datamodules.Pionts", "did you mean Points"),
        ("num_samples: 5", "num_samples: 0", "evaluation 'auto' needs num_samples >= 1"),
        ("num_samples: 5", "batch_size: 0", "evaluation 'auto' needs batch_size >= 1"),
        ("images: 1/2", "images: [1]", "guider.init_args.images is [1]; expected a whole number or a number"),
        ("num_samples: 5", "num_samples: 5\n        num_samples: 6", "wrong.yaml, line"),
        ("trainer:", "trainer: [", "wrong.yaml is not valid YAML"),
    ):
        assert right in text
        Path("wrong.yaml").write_text(text.replace(right, wrong))
        said = failure(monkeypatch, capsys, "fit", "-c", "wrong.yaml", "--trainer.default_root_dir", run)
        (line,) = [line for line in said.splitlines() if "lightning-guide: error:" in line]
        assert expected in line and "Given value" not in said and "usage:" not in said
    Path("wrong.yaml").write_text("trainer: {max_steps: 3}\ntrainer: {max_steps: 4}")
    Path("wrong").write_text(Path("wrong.yaml").read_text())
    Path("wrong.yml").write_text(Path("wrong.yaml").read_text())
    for words in (["-c", "wrong"], ["-c=wrong"], ["-cwrong.yml"], ["--config=wrong"], ["--model", "wrong.yaml"]):
        said = failure(monkeypatch, capsys, "fit", "-c", "tiny.yaml", *words, "--trainer.default_root_dir", run)
        assert re.search("error: wrong(.ya?ml)?, line 2: duplicate key 'trainer' .first defined on line 1.", said)
