"""The study of fine-tuning runs from shards to tables on a small scale, and continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import Shards, write_shards
from scripts.studies.fine_tuning.captions import CHANNELS, LENGTH, NAMES, write_captioned, write_prompts
from scripts.studies.fine_tuning.run import study

SMALL: dict[str, Any] = {
    "base_steps": 4, "channels": 8, "classifier_steps": 2, "large": 6, "small": 4, "steps": 4, "ranks": [2],
    "rates": [0.01], "whole_rates": [0.001], "weights": [1.5, 2.0], "synthetic": 8, "sims_steps": 2,
    "reward_steps": 2, "reward_samples": 4, "rounds": 2, "num_samples": 6, "seeds": 2, "batch_size": 4, "num_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 40 images of noise in ten classes each, and two held-out ones."""
    folder = tmp_path_factory.mktemp("images")
    for name, count in (("train", 80), ("test", 80)):
        x = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
        write_shards([(each, i % 10) for i, each in enumerate(x)], folder, name=name, records_per_shard=40)
    return folder


def test_captions_are_those_of_the_classes(images: Path, tmp_path: Path) -> None:
    source = Shards(f"{images}/train-*.tar", f"{images}/test-*.tar", num_classes=10)
    write_captioned(source, tmp_path, [1, 3], per_class=5)
    write_prompts(tmp_path / "prompts", [1, 3])
    shards, prompts = f"{tmp_path}/train-*.tar", str(tmp_path / "prompts.npy")
    written = Shards(shards, shards, token_channels=CHANNELS, token_length=LENGTH, prompt_file=prompts)
    found, labeled = written.training().take(torch.arange(10)), source.training().take(torch.arange(80))
    assert len(written.training()) == 10 and written.prompt_texts == [NAMES[1], NAMES[3]]
    assert labeled.condition is not None and found.condition is not None
    for x, tokens in zip(found.x, found.condition, strict=True):
        (row,) = (labeled.x == x).flatten(1).all(1).nonzero()
        which = [1, 3].index(int(labeled.condition[row]))
        torch.testing.assert_close(tokens, written.prompts()[torch.tensor([which])][0], atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_the_study_runs_from_shards_to_tables(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(str(images), out=str(tmp_path), **SMALL)
    tables = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("rates", "guiders", "sims")}
    assert set(tables["rates"]) == {"base", "lora_2_0.01", "whole_0.001"}
    assert tables["guiders"]["unguided"]["fd_change"]["mean"] == 0 and len(tables["guiders"]) == 5
    assert len(tables["sims"]) == 3 and all(0 <= each["recall"]["mean"] <= 1 for each in tables["sims"].values())
    reward = json.loads((tmp_path / "reward.json").read_text())
    assert reward["base"]["distance"]["mean"] == 0 < reward["algorithm 1"]["distance"]["mean"]
    capsys.readouterr()
    study(str(images), out=str(tmp_path), **SMALL)
    assert "fit of" not in capsys.readouterr().out
    assert json.loads((tmp_path / "reward.json").read_text()) == reward
