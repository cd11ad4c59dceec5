"""configs/pretrained/mdm*.yaml and the command import, each run with a tiny random MDM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.commands.guidance_files import read_guidances
from scripts.examples.tiny_pipeline import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:.*samples are not finite or out of bounds")

FOLDER = Path(__file__).parent.parent / "configs/pretrained"
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
SHORT = ["--model.denoiser.init_args.data_shape", "[263, 24]", "--data.frames", "24"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working folder with the files in the places that the configs name."""
    monkeypatch.chdir(tmp_path)
    tiny_pipeline("mdm", "models/mdm")
    assert "written to models/mdm" in capsys.readouterr().out
    return tmp_path / "models/mdm"


def validate(*names: str) -> dict[str, Any]:
    """Run configs with 4 steps of each sampler; return the results."""
    words = [word for name in names for word in ("-c", str(FOLDER / f"{name}.yaml"))]
    few = {"sampler": {"init_args": {"grid": 4}}, "num_samples": 4, "batch_size": 4}
    settings = {"model": {"init_args": {"evaluations": {"cfg": few}}}}
    Path("few.yaml").write_text(yaml.safe_dump(settings))
    main(["validate", *words, "-c", "few.yaml", "--data.prompts", "models/mdm/prompts.npy", *SHORT, *TRAINER])
    found: dict[str, Any] = json.loads(Path("runs/pretrained/mdm/report/metrics.json").read_text())
    return found


@pytest.mark.parametrize("name", ["mdm_guidances", pytest.param("mdm_goal", marks=pytest.mark.slow)])
def test_every_guidance_draws(name: str, files: Path) -> None:
    found = validate("mdm", name)
    assert list(found) == ["cfg", *read_guidances([str(FOLDER / f"{name}.yaml")])]
    assert all(each["samples"] == 4 for each in found.values())
    assert len(Image.open("runs/pretrained/mdm/report/paths.png").convert("L").getcolors()) > 10
    assert Path("runs/pretrained/mdm/report.html").is_file()
    if name == "mdm_goal":
        assert len({round(each["target"], 3) for each in found.values()}) >= 7  # the methods differ, even untrained
        assert found["normalized"]["target"] < found["cfg"]["target"]


def test_import_samples_at_once(files: Path) -> None:
    moments = ["--mean", "models/mdm/Mean.npy", "--std", "models/mdm/Std.npy"]
    main(["import", "mdm", "models/mdm/model.pt", "runs/mdm", *moments, "--frames", "24", "--num_steps", "3"])
    config = yaml.safe_load(Path("runs/mdm/config.yaml").read_text())
    drawn = config["model"]["init_args"]["prediction"]
    assert drawn["guidance"]["init_args"] == {"weight": 2.5}
    assert drawn["sampler"] == {"class_path": "DDIM", "init_args": {"grid": 3, "eta": 1.0}}
    assert config["data"]["init_args"]["mean"] == str(files / "Mean.npy")
    main(["predict", "runs/mdm", *TRAINER, "--data.prompts", "models/mdm/prompts.npy"])
    (archive,) = Path("runs/mdm/samples").rglob("samples.npz")
    with np.load(archive) as content:
        assert content["x"].shape == (16, 22, 3, 24) and content["condition"].tolist() == [0, 1, 2, 3] * 4
        assert np.isfinite(content["x"]).all() and not content["x"][:, 0, [0, 2], 0].any()  # the root begins at 0
    assert len(Image.open(archive.with_name("samples.png")).convert("L").getcolors()) > 10


def test_a_copy_needs_no_file(files: Path) -> None:
    source = f"mdm:{files}/model.pt"
    expected = lg.load(source, data_shape=[263, 24])
    moments = ["--mean", "models/mdm/Mean.npy", "--std", "models/mdm/Std.npy", "--frames", "24", "--copy", "true"]
    main(["import", "mdm", "models/mdm/model.pt", "runs/mdm", *moments])
    (files / "model.pt").unlink()
    x, sigma = torch.randn(2, 263, 24), torch.tensor(2.0)
    torch.testing.assert_close(lg.load("runs/mdm")(x, sigma), expected(x, sigma))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "models of the kind mdm need mean and std"),
        (["--mean", "other.npy", "--std", "other.npy"], r"data_shape is \(251, 196\); expected \(263, frames\)"),
        (["--mean", "models/mdm/Mean.npy", "--std", "nothing.npy"], "nothing.npy: cannot be read as moments"),
    ],
)
def test_mistakes_leave_no_run(
    words: list[str], expected: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("other.npy", np.ones(251))
    with pytest.raises(SystemExit) as ended:
        main(["import", "mdm", "models/mdm/model.pt", "runs/mdm", *words])
    assert re.search(expected, f"{ended.value}{capsys.readouterr().err}")
    assert not Path("runs/mdm/config.yaml").exists()
