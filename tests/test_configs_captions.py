"""configs/pretrained/sd15_captions.yaml: one command from a folder of images with captions to guided samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_guide.cli import main
from tests.test_configs_pretrained import tiny_config
from tests.test_datamodules_captioned_images import write_images

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
pytestmark = pytest.mark.filterwarnings("ignore:.*samples are not finite or out of bounds")  # of a random network


@pytest.mark.slow
def test_captions(
    tiny_pipeline: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data/images")
    config = tiny_config("fit", "sd15_captions", tiny_pipeline("sd"), tmp_path / "run", capsys)
    sizes = ["--data.buckets.step", "4", "--data.batch_size", "2", "--trainer.max_steps", "8"]
    sizes += ["--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1"]
    main(["fit", "-c", str(config), *sizes])
    results = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert list(results) == ["unguided", "cfg", "autoguidance", "published"]
    assert len(list((tmp_path / "run/snapshots").glob("*.safetensors"))) >= 2
    main(["predict", str(tmp_path / "run"), "--data.prompts", "[a red boat]"])
    assert "a red boat" in next((tmp_path / "run/samples").rglob("prompts.csv")).read_text()
