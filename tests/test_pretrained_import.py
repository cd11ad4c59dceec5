"""The command import: a run of a published model samples at once, by command and from Python, and can be a guider."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import ControlledNetwork
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds

pytest.importorskip("diffusers", reason="needs diffusers (the extra pretrained), which is missing")
pytest.importorskip("transformers", reason="needs transformers (the extra pretrained), which is missing")

from tests.tiny_pipelines import write_pipeline  # noqa: E402

TRAINER = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def folders(tiny_pipeline: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny pipelines as they are published."""
    return {name: tiny_pipeline(name) for name in ("sd", "ddpm", "dit")}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))


def config_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return content


def test_the_config_is_what_the_folder_says(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        main(["import", "diffusers", str(folder), str(tmp_path / name)])
    assert "&id" not in (tmp_path / "sd/config.yaml").read_text()
    models = {name: config_of(tmp_path / name)["model"]["init_args"] for name in folders}
    assert models["sd"]["prediction"]["sampler"]["class_path"].endswith("PLMS")
    assert models["sd"]["prediction"]["sampler"]["init_args"]["grid"] == 50
    assert models["sd"]["prediction"]["guidance"]["init_args"] == {"weight": 7.5}
    assert models["ddpm"]["prediction"]["guidance"]["class_path"].endswith("Clipped")
    assert list(models["ddpm"]["evaluations"]) == ["unguided"] and list(models["dit"]["evaluations"])[1] == "cfg"
    assert config_of(tmp_path / "dit")["data"]["init_args"]["std"] == pytest.approx([2.74499] * 4, rel=1e-5)


def test_it_samples_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["import", "diffusers", str(folders["sd"]), str(run), "--num_steps", "2"])
    few = ["--model.prediction.num_samples", "3", "--model.prediction.guidance.init_args.weight", "1.5"]
    main(["predict", str(run), *TRAINER, *few])
    images = sorted(run.rglob("*.png"))
    assert len(images) == 3 and Image.open(images[0]).size == (16, 16)
    model = lg.load(run)
    assert model.token_channels == 16 and not any(weight.requires_grad for weight in model.parameters())
    drawn = lg.Run(run).sample(lg.ClassifierFreeGuidance(1.5), Euler(2), count=2)
    assert drawn.shape == (2, 3, 16, 16) and drawn.dtype == torch.uint8
    results = lg.Run(run).evaluate({"pag": {"num_samples": 2, "batch_size": 2}})
    assert results["pag"]["samples"] == 2


def test_validation_reports_images(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["import", "diffusers", str(folders["sd"]), str(run), "--num_steps", "2"])
    few = ["--model.evaluations.unguided.num_samples", "2", "--model.evaluations.cfg.num_samples", "2"]
    main(["validate", str(run), *TRAINER, *few])
    said = capsys.readouterr().out
    assert f"page {run}/report.html; images in {run}/gallery, {run}/grids; metrics in {run}/report; " in said
    assert len(list((run / "grids").glob("*-cfg.*"))) == 2  # the prompts, too
    shape = ["--model.denoiser.init_args.data_shape", "[4, 12, 20]"]
    few = ["--model.prediction.num_samples", "1"]
    with pytest.raises(SystemExit, match="as model.denoiser.init_args.data_shape and data.data_shape"):
        main(["predict", str(run), *TRAINER, *shape, *few])
    main(["predict", str(run), *TRAINER, *shape, *few, "--data.data_shape", shape[1]])
    (image,) = (run / "samples").rglob("0*.png")
    assert Image.open(image).size == (40, 24)


def test_weights_can_be_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders["ddpm"], source)
    expected = lg.load(f"diffusers:{source}")
    main(["import", "diffusers", str(source), str(tmp_path / "run"), "--copy", "true"])
    shutil.rmtree(source)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(2.0)
    torch.testing.assert_close(lg.load(moved)(x, sigma), expected(x, sigma))


@pytest.mark.parametrize("own", [True, False])  # the pipeline has a ControlNet, or one is added
def test_a_model_with_a_controlnet_samples_at_once(
    own: bool,
    folders: dict[str, Path],
    tiny_pipeline: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(16, 16, 3)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/edges.png")
    monkeypatch.chdir(tmp_path / "images")
    controlled = tiny_pipeline("controlnet")
    source, added = (controlled, []) if own else (folders["sd"], ["--controlnet", str(controlled / "controlnet")])
    words = ["import", "diffusers", str(source), str(tmp_path / "run"), "--num_steps", "2", *added]
    with pytest.raises(SystemExit, match="needs a control image; expected .*control_image"):
        main(words)
    main([*words, "--control_image", "edges.png"])
    arguments = config_of(tmp_path / "run")["model"]["init_args"]
    assert arguments["denoiser"]["init_args"]["controlnet"]["image"] == str(tmp_path / "images/edges.png")
    assert arguments["prediction"]["guidance"]["init_args"] == {"weight": 7.5}
    monkeypatch.chdir(tmp_path)  # the path is absolute
    main(["predict", str(tmp_path / "run"), *TRAINER, "--model.prediction.num_samples", "1"])
    assert len(list((tmp_path / "run/samples").rglob("*.png"))) == 1
    model = lg.load(tmp_path / "run")
    assert isinstance(model, Preconditioned) and isinstance(model.network, ControlledNetwork)
    assert torch.equal(model.network.image, torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_a_published_model_guides_another(folders: dict[str, Path], tmp_path: Path) -> None:
    main(["import", "diffusers", str(folders["dit"]), str(tmp_path / "run")])
    guider = lg.Pretrained(f"diffusers:{folders['dit']}")
    with torch.no_grad():
        for weight in guider.parameters():
            weight.mul_(0.9)
    run = lg.Run(tmp_path / "run")
    good, x, sigma = run.model(), torch.randn(2, 4, 8, 8), torch.tensor(2.0)
    guided = run.resolve(lg.Autoguidance(guider, 1.5))
    labels = torch.tensor([3, 4])
    bad = guider.eval()(x, sigma, labels)
    torch.testing.assert_close(guided(x, sigma, labels), bad + 1.5 * (good(x, sigma, labels) - bad))
    ends = [Euler(3).sample(each, seeds=SampleSeeds(0, range(2)), condition=labels).x for each in (good, guided)]
    assert not torch.equal(*ends)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--images", "3"], "images and sigma_rel are of EDM2 snapshots; diffusers models have none"),
        (["--prompts", "nowhere.txt"], "the file of prompts nowhere.txt does not exist"),
        (["--num_steps", "0"], "steps"),
        (["--copy", "--num_steps", "2"], "--copy needs a value; expected --copy true or --copy false"),
        (["--num_steps", "2", "--copy"], "--copy needs a value; expected --copy true or --copy false"),
    ],
)
def test_mistakes_leave_no_run(
    words: list[str], expected: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["import", "diffusers", str(folders["sd"]), str(tmp_path / "run"), *words])
    assert expected in f"{ended.value}{capsys.readouterr().err}" and not (tmp_path / "run/config.yaml").exists()


def test_an_autoencoder_that_is_missing_is_said(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(folders["dit"], tmp_path / "dit")
    main(["import", "diffusers", str(folder), str(tmp_path / "whole")])
    assert "samples stay latents" not in capsys.readouterr().out
    shutil.rmtree(folder / "vae")
    main(["import", "diffusers", str(folder), str(tmp_path / "run")])
    assert f"{folder} has no folder vae with an autoencoder: samples stay latents\n" in capsys.readouterr().out
    assert lg.load(f"diffusers:{folder}").sigma_data == lg.load(f"diffusers:{folders['dit']}").sigma_data == 1.0


def test_options_of_other_kinds_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    prompts = ["--prompts", str(tmp_path / "prompts.txt")]
    with pytest.raises(SystemExit, match="diffusers:.* reads no texts; expected no prompts"):
        main(["import", "diffusers", str(folders["ddpm"]), str(tmp_path / "run"), *prompts])
    for words, said in ((prompts, "prompts is"), (["--dtype", "bfloat16"], "dtype is bfloat16")):
        with pytest.raises(SystemExit, match=f"{said}.*, which the import of EDM2 snapshots does not have"):
            main(["import", "edm2", "a.pkl", str(tmp_path / "run"), *words])
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", "diffusers", str(folders["ddpm"]), str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main(["import", "diffusers", str(folders["ddpm"]), str(tmp_path / "run")])
    assert "already holds a run" in f"{ended.value}{capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:evaluation 'prediction'. 1 of 1 samples are not finite or out of bounds")
@pytest.mark.parametrize("name", ["sdxl", "if", "consistency", "pixart", "sd3", "flux"])
def test_every_family_samples_at_once(name: str, tmp_path: Path) -> None:
    """Guided where the model has a "no condition": not of consistency models, and FLUX is distilled."""
    folder, run = write_pipeline(name, tmp_path / name), tmp_path / "run"
    main(["import", "diffusers", str(folder), str(run), "--num_steps", "2"])
    guided = "cfg" in config_of(run)["model"]["init_args"]["evaluations"]
    assert guided == (name not in ("consistency", "flux"))
    main(["predict", str(run), *TRAINER, "--model.prediction.num_samples", "1"])
    (image,) = run.glob("samples/**/*.png")
    assert np.asarray(Image.open(image)).std() > 1
