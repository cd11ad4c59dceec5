"""Every file of configs/gradient is parsed and runs on a small scale from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from tests.event_files import shown

FOLDER = Path(__file__).parent.parent / "configs" / "gradient"


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Run `lightning-guide WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["lightning-guide", *map(str, words)])
    main()


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds/history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_config_is_parsed(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command(monkeypatch, "fit", "-c", file, "--print_config")
    assert left.value.code == 0
    assert {"trainer", "model", "data"} <= set(yaml.safe_load(capsys.readouterr().out))
    assert file.read_text().startswith("# ")


CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", 1, "--trainer.enable_progress_bar", "false"]


@pytest.mark.slow
def test_subspace_configs_run_from_training_to_optimization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--data.training_size", 256, "--data.heldout_size", 32]
    few = ["--trainer.max_steps", 4, "--trainer.limit_val_batches", 0, "--data.batch_size", 8]
    command(monkeypatch, "fit", "-c", FOLDER / "score.yaml", *CPU, *few, *small)
    run = tmp_path / "runs/gradient"
    rounds = ["--model.num_rounds", 3, "--model.sampling.num_samples", 5]
    for name in ("optimize", "exact"):
        command(monkeypatch, "test", "-c", FOLDER / f"{name}.yaml", *CPU, *small, *rounds)
        assert [record["round"] for record in history(run / name)] == [0, 1, 2]
    (folder,) = (run / "exact/tensorboard").glob("test_*")
    logged = [value for _, value in shown(folder)["rounds/objective"]]
    assert logged == pytest.approx([record["objective"] for record in history(run / "exact")], rel=1e-5)
    command(monkeypatch, "test", "-c", FOLDER / "exact.yaml", *CPU, *small, *rounds, "--model.num_rounds", 4)
    assert len(history(run / "exact")) == 4  # resumed
    shrunk = ["--trainer.max_steps", 4, "--data.batch_size", 8, "--model.sampling.num_samples", 5]
    for name in ("mean_refit", "fine_tune", "low_rank"):
        command(monkeypatch, "fit", "-c", FOLDER / f"{name}.yaml", *CPU, *shrunk, *small)
        assert len(history(run / name)) >= 1 and list((run / name / "checkpoints").glob("*4.ckpt"))
