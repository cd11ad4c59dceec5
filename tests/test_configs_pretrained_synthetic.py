"""Configs of configs/pretrained/ that train on samples of the published model itself, run with a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_guide.cli import main
from tests.test_configs_pretrained import Tiny, tiny_config

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
pytestmark = pytest.mark.slow


def fit(name: str, source: Path, run: Path, capsys: Any, **trainer: Any) -> None:
    """Run a config for 4 steps on 8 samples of the tiny model in `source`."""
    path = tiny_config("fit", name, source, run, capsys)
    settings = yaml.safe_load(path.read_text())
    settings["trainer"] |= {"max_steps": 4, "log_every_n_steps": 1} | trainer
    data = settings["data"]["init_args"]
    data |= {"run": f"diffusers:{source}", "folder": str(run / "set"), "num_samples": 8, "chunk_size": 4}
    data |= {"batch_size": 4}
    data["data"]["init_args"]["cache"] = str(run / "cache")
    for callback in settings["trainer"]["callbacks"]:
        arguments = callback.get("init_args", {})
        arguments |= {"budgets": [8, 16]} if "budgets" in arguments else {}
    if "objective" in settings["model"]["init_args"]:
        reward = settings["model"]["init_args"]
        reward["objective"]["init_args"]["backbone"]["init_args"] = {"size": 32}  # random weights
        reward["sampling"] |= {"num_samples": 4}
        reward["steps_per_round"] = 2
    text = yaml.safe_dump(settings, sort_keys=False)
    path.write_text(text.replace("images: 2000", "images: 8").replace("images: 6000", "images: 16"))
    main(["fit", "-c", str(path)])


def test_sims(tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, source = tmp_path / "run", tiny_pipeline("sd")
    fit("sd15_sims", source, run, capsys, val_check_interval=4)
    results = json.loads((run / "report/metrics.json").read_text())
    calls = {name: each["nfe"] / results["base"]["nfe"] for name, each in results.items()}
    sims, neon = ([f"{name}_{budget}_1_5" for budget in (2000, 6000)] for name in ("sims", "neon"))
    assert calls == {"base": 1} | dict.fromkeys(sims, 2) | dict.fromkeys(neon, 1)
    assert len(list((run / "set").glob("*.tar"))) == 2
    main(["neon", f"diffusers:{source}", str(run), "--out", str(tmp_path / "neon")])
    main(["export", str(tmp_path / "neon"), str(tmp_path / "out"), "--form", "diffusers", "--source", str(source)])


def test_adaptive_fine_tuning(tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    fit("sd15_reward_lora", tiny_pipeline("sd"), run, capsys)
    rounds = [json.loads(line) for line in (run / "rounds/history.jsonl").read_text().splitlines()]
    assert len(rounds) == 2 and rounds[0]["distance"] == 0 < rounds[1]["distance"]
    with Image.open(run / "report/rounds.png") as image:
        assert image.height < image.width / 1.5  # two rows of four
    assert (run / "report.html").is_file() and list((run / "snapshots").glob("*.safetensors"))
