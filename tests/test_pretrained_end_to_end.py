"""A published text-to-image model from its folder to images, CLIP score and FD, on one rank and on two."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from callbacks.output import write_png
from lightning_guide.cli import main
from tests.event_files import shown
from tests.processes import Processes

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
open_clip = pytest.importorskip("open_clip", reason="the CLIP score needs it")
PROMPTS = ["a cat", "two dogs", "a house"]
CLIP = "ViT-S-32-alt"  # the smallest that open_clip has


@pytest.fixture(scope="module")
def place(tiny_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an earlier one, a random CLIP, reference statistics, guidances, and two imported runs."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(tiny_pipeline("sd"), folder / "model")
    shutil.copytree(folder / "model", folder / "earlier")
    (weights,) = (folder / "earlier/unet").glob("*.safetensors")
    save_file({k: 0.9 * v for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    torch.manual_seed(0)
    torch.save(open_clip.create_model(CLIP).state_dict(), folder / "clip.pt")
    pixels = torch.Generator().manual_seed(0)
    for i in range(40):
        write_png(folder / f"real/a/{i}.png", torch.randint(256, (3, 16, 16), generator=pixels).to(torch.uint8))
    data = [
        "--data",
        "ImageFolder",
        "--data.train",
        str(folder / "real"),
        "--data.size",
        "16",
        "--data.num_classes",
        "1",
    ]
    main(["statistics", str(folder / "real.npz"), *data, "--extractor", "RawPixels"])
    (folder / "guided.yaml").write_text(yaml.safe_dump(guided(folder), sort_keys=False), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    for run in ("1", "2"):
        words = ["--num_steps", "4", "--prompts", str(folder / "prompts.txt")]
        main(["import", "diffusers", str(folder / "model"), str(folder / run), *words])
    return folder


def guided(folder: Path) -> dict[str, Any]:
    """Three guidances with CLIP score and FD, on top of the config of the run."""
    drawn = {"num_samples": 7, "batch_size": 2, "sampler": {"class_path": "DPMSolver2M", "init_args": {"grid": 4}}}
    earlier = {"class_path": "Pretrained", "init_args": {"source": f"diffusers:{folder / 'earlier'}"}}
    guidances = {
        "cfg": {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 4}},
        "pag": {"class_path": "PerturbedAttentionGuidance", "init_args": {"weight": 3}},
        "autoguidance": {"class_path": "Autoguidance", "init_args": {"weight": 2, "guider": earlier}},
    }
    clip = {"class_path": "ClipFeatures", "init_args": {"name": CLIP, "weights": str(folder / "clip.pt")}}
    statistics = {"extractor": {"class_path": "RawPixels"}, "statistics": str(folder / "real.npz")}
    settings = {
        "evaluations": {"unguided": drawn},
        "guidances": guidances,
        "prediction": drawn | {"guidance": guidances["cfg"]},
        "metrics": {
            "clip": {"class_path": "ClipScore", "init_args": {"extractor": clip, "prompts": PROMPTS}},
            "fd": {"class_path": "FrechetDistance", "init_args": statistics},
        },
    }
    callbacks = [{"class_path": "SampleGrid"}, {"class_path": "RunReport"}]
    trainer = {"accelerator": "cpu", "callbacks": callbacks, "enable_progress_bar": False}
    return {"trainer": trainer, "model": {"init_args": settings}}


def command(name: str, place: str, world: int) -> None:
    """Run a command of the command line on the run `world`."""
    ranks = ["--trainer.devices", str(world), *(["--trainer.strategy", "ddp"] if world > 1 else [])]
    main([name, f"{place}/{world}", "-c", f"{place}/guided.yaml", *ranks])


def test_from_a_folder_to_images_with_their_prompts(place: Path) -> None:
    command("predict", str(place), 1)
    (folder,) = (place / "1/samples").iterdir()
    with (folder / "prompts.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [PROMPTS[i % 3] for i in range(7)]
    images = [Image.open(folder / f"000000/{int(row['index']):06d}.png") for row in rows]
    assert {image.size for image in images} == {(16, 16)} and len({image.tobytes() for image in images}) == 7


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(place: Path, tmp_path: Path, processes: Processes) -> None:
    for world in (1, 2):
        for name in ("validate", "predict"):
            options: dict[str, Any] = {"name": name, "place": str(place), "world": world}
            if world == 1:
                processes.call((__name__, "command"), tmp_path / f"{name}-1", **options)
            else:
                processes.call_ranks(world, (__name__, "command"), tmp_path / f"{name}-2", **options)
    one, two = (json.loads((place / f"{world}/report/metrics.json").read_text()) for world in (1, 2))
    assert set(one) == {"unguided", "cfg", "pag", "autoguidance"} == set(two)
    for name, metrics in one.items():
        for key in ("clip_score", "fd", "nfe", "samples"):
            assert two[name][key] == pytest.approx(metrics[key], rel=1e-4), (name, key)
    assert len({round(metrics["clip_score"], 6) for metrics in one.values()}) == 4
    events = shown(place / "2/tensorboard/validate_0")
    for name, metrics in two.items():
        for key in ("clip_score", "fd"):
            assert events[f"{name}/{key}"][-1][1] == pytest.approx(metrics[key], rel=1e-5)
    for path in (place / "1/samples").rglob("*.png"):
        other = Image.open(place / "2" / path.relative_to(place / "1"))
        difference = torch.tensor(list(Image.open(path).tobytes())) - torch.tensor(list(other.tobytes()))
        assert int(difference.abs().max()) <= 1
    page = (place / "2/report.html").read_text(encoding="utf-8")
    assert "row by row" in page and "a cat\ntwo dogs\na house" in page
