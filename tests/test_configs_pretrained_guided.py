"""configs/pretrained/: celebahq.yaml and adm.yaml, guided without training, with tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_guide.cli import main
from scripts.lib.published_models import PUBLISHED
from tests.face_networks import smaller, write_face_networks

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytestmark = pytest.mark.filterwarnings("ignore:.*samples are not finite or out of bounds")  # of random networks

FOLDER = Path(__file__).parent.parent / "configs"
METHODS = ["freedom", "lgd", "universal", "mpgd", "polyak", "polyak_augmented"]


def shrunk(files: list[Path], run: Path, capsys: pytest.CaptureFixture[str], *, grid: Any, **denoiser: Any) -> Path:
    """The merged config with another model, small networks and few steps, on the CPU."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["validate", *[word for file in files for word in ("-c", str(file))], "--print_config"])
    assert left.value.code == 0
    settings = smaller(with_grid(yaml.safe_load(capsys.readouterr().out), grid))
    settings["trainer"] |= {"accelerator": "cpu", "default_root_dir": str(run), "enable_progress_bar": False}
    settings["model"]["init_args"]["denoiser"]["init_args"] |= denoiser
    for each in settings["model"]["init_args"]["evaluations"].values():
        each |= {"num_samples": 2, "num_classes": each["num_classes"] and 10}
    return write(settings, run.with_suffix(".yaml"))


def with_grid(value: Any, grid: Any) -> Any:
    """Settings with `grid` for the numbers of steps of samplers."""
    if isinstance(value, list):
        return [with_grid(each, grid) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: grid if key == "grid" else with_grid(each, grid) for key, each in value.items()}


def write(settings: Any, path: Path) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report/metrics.json").read_text())
    return found


@pytest.mark.parametrize(
    "task", ["parsing", *[pytest.param(each, marks=pytest.mark.slow) for each in ("sketch", "text")]]
)
def test_faces(
    task: str,
    tiny_pipeline: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_face_networks(side=8)
    files = [FOLDER / "pretrained/celebahq.yaml", FOLDER / f"training_free/images/faces_{task}.yaml"]
    config = shrunk(files, tmp_path / "run", capsys, grid=4, source=f"diffusers:{tiny_pipeline('ddpm')}")
    settings = yaml.safe_load(config.read_text())
    size = PUBLISHED["DDPM CelebA-HQ 256"].config["sample_size"]  # at full size: test_pretrained_published_sizes.py
    assert settings["data"]["init_args"]["data_shape"] == [3, size, size]
    settings["data"]["init_args"]["data_shape"] = [3, 8, 8]
    main(["validate", "-c", str(write(settings, config))])
    found = results(tmp_path / "run")
    assert list(found) == ["unguided", *METHODS]
    assert all(each["samples"] == 2 and not each.get("unguided", 0) for each in found.values())


@pytest.mark.slow
def test_adm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The published files at full size: test_pretrained_adm.py."""
    theirs = pytest.importorskip("azula.plugins.adm._src.unet", reason="needs azula, of the extra `test`")
    monkeypatch.chdir(tmp_path)
    write_face_networks(side=16)
    Path("models").mkdir()
    options = {"in_channels": 3, "model_channels": 64, "num_res_blocks": 1, "channel_mult": (1, 1)}
    options |= {"image_size": 16, "attention_resolutions": (1, 2), "num_head_channels": 64}
    options |= {"use_scale_shift_norm": True, "resblock_updown": True}
    torch.manual_seed(0)
    for file, network in (
        ("diffusion_uncond", theirs.UNetModel(out_channels=6, **options)),
        ("diffusion", theirs.UNetModel(out_channels=6, num_classes=10, **options)),
        ("classifier", theirs.EncoderUNetModel(out_channels=10, pool="attention", **options)),
    ):
        weights = {k: torch.randn_like(v) * 0.05 if not v.any() else v for k, v in network.state_dict().items()}
        torch.save(weights, f"models/256x256_{file}.pt")
    config = shrunk([FOLDER / "pretrained/adm.yaml"], tmp_path / "run", capsys, grid=3)
    settings = yaml.safe_load(config.read_text())
    assert settings["data"]["init_args"]["data_shape"] == [3, 256, 256]
    settings["data"]["init_args"]["data_shape"] = [3, 16, 16]
    main(["validate", "-c", str(write(settings, config))])
    found = results(tmp_path / "run")
    evaluations = settings["model"]["init_args"]["evaluations"]
    assert list(found) == list(evaluations) and {*METHODS, "freedom_augmented", "classifier"} - {"polyak"} <= set(found)
    assert all(each["samples"] == 2 and not each.get("unguided", 0) for each in found.values())

    # the conditional model, as the comment in the config has it
    del settings["trainer"]["default_root_dir"]
    settings["model"]["init_args"]["evaluations"] = {"classifier": evaluations["classifier"]}
    config = write(settings, tmp_path / "conditional.yaml")
    changes = ["--model.denoiser.source", "adm:models/256x256_diffusion.pt"]
    changes += ["--model.evaluations.classifier.guidance.weight", "1"]
    changes += ["--data.num_classes", "10", "--trainer.default_root_dir", "conditional"]
    main(["validate", "-c", str(config), *changes])
    assert list(results(tmp_path / "conditional")) == ["classifier"]
