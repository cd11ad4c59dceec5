"""Published models in runs: fine-tuned whole or by low-rank additions, and as guiders, on one rank and two."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.runs.session import open_session
from tests.processes import Processes
from tests.runs import checkpoint

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")


@pytest.fixture
def folder(tiny_pipeline: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model that can be taken away."""
    return shutil.copytree(tiny_pipeline("ddpm"), tmp_path / "published")


@pytest.fixture
def earlier(tiny_pipeline: Callable[[str], Path], tmp_path: Path) -> Path:
    """An earlier checkpoint: the same architecture with other weights."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_pipeline("ddpm"), tmp_path / "earlier")
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: 0.8 * weight for name, weight in load_file(path).items()}, path)
    return folder


def published(folder: Path) -> dict[str, Any]:
    return {"class_path": "Pretrained", "init_args": {"source": f"diffusers:{folder}"}}


def config(run: Path, denoiser: dict[str, Any], guider: Path, *, average: float | None = 0.05) -> dict[str, Any]:
    """Two steps of training, and evaluations under autoguidance by another published model."""
    guided = {"class_path": "Autoguidance", "init_args": {"guider": published(guider), "weight": 1.5}}
    evaluation = {
        "sampler": {"class_path": "Euler", "init_args": {"grid": 3}},
        "num_samples": 4,
        "batch_size": 2,
        "metrics": {
            "distance": {"class_path": "KernelDistance", "init_args": {"extractor": {"class_path": "RawPixels"}}}
        },
    }
    return {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "max_steps": 2,
            "val_check_interval": 2,
            "limit_val_batches": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "RunCheckpoint", "init_args": {"every_steps": 2}},
                {"class_path": "PostHocEMA", "init_args": {"every_images": 8, "sigma_rels": [0.05]}},
            ],
        },
        "model": {
            "class_path": "DiffusionModule",
            "init_args": {
                "denoiser": denoiser,
                "loss": {"class_path": "EpsilonLoss"},
                "average": average,
                "learning_rate": {"class_path": "ConstantRate", "init_args": {"peak": 1e-5}},
                "evaluations": {"unguided": evaluation, "auto": evaluation | {"guidance": guided}},
                "prediction": evaluation | {"guidance": guided},
            },
        },
        "data": {
            "class_path": "tests.runs.TinyImages",
            "init_args": {"shape": [3, 8, 8], "classes": 0, "batch_size": 4},
        },
    }


def fit(settings: dict[str, Any], file: Path) -> None:
    file.write_text(yaml.safe_dump(settings))
    main(["fit", "-c", str(file)])


def test_it_is_fine_tuned_and_its_snapshots_need_no_folder(folder: Path, earlier: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", lg.load(f"diffusers:{folder}")
    fit(config(run, published(folder), earlier), tmp_path / "config.yaml")
    trained = [name for name in checkpoint(run)["state_dict"] if not name.startswith("loss.")]
    assert all(name.startswith("denoiser.") for name in trained) and len(trained) == len(before.state_dict())
    shutil.rmtree(folder)
    shutil.rmtree(earlier)
    after = lg.load(run)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.5)
    assert after(x, sigma).shape == x.shape and not torch.equal(after(x, sigma), before(x, sigma))
    torch.testing.assert_close(after(x, sigma), before(x, sigma), rtol=0.05, atol=0.05)  # after two small steps


def test_dropout_acts_in_training_alone(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout": 0.5}))
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.5)
    trained, fixed = lg.Pretrained(f"diffusers:{folder}"), lg.load(f"diffusers:{folder}")
    assert torch.equal(fixed(x, sigma), fixed(x, sigma))
    assert not torch.equal(trained(x, sigma), trained(x, sigma))


GUIDANCES: dict[str, Any] = {
    "cfg": {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 3.0}},
    "pag": {"class_path": "PerturbedAttentionGuidance", "init_args": {"weight": 2.0}},
    "auto": {"class_path": "Autoguidance", "init_args": {"weight": 1.5}},
}


def predict(file: str, world: int) -> None:
    """Draw the samples of a config on this rank, and write them."""
    settings = yaml.safe_load(Path(file).read_text())
    gloo = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"process_group_backend": "gloo"}}
    settings["trainer"] |= {"devices": world, "strategy": gloo} if world > 1 else {}
    session = open_session(settings)
    drawn: Any = session.trainer.predict(session.model, datamodule=session.datamodule)
    found = {int(index): x for part in drawn for index, x in zip(part.index, part.x, strict=True)}
    torch.save(found, f"{file}.{world}.{os.environ.get('RANK', 0)}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDANCES)
def test_two_ranks_draw_the_samples_of_one(
    tiny_pipeline: Callable[[str], Path], processes: Processes, tmp_path: Path, name: str
) -> None:
    """Typed prompts under guidance, the guider of autoguidance being another published model."""
    source, guidance = tiny_pipeline("sd"), copy.deepcopy(GUIDANCES[name])
    if name == "auto":
        guider = published(source)
        guider["init_args"] |= {"dtype": "bfloat16"}
        guidance["init_args"]["guider"] = guider
    settings = config(tmp_path, published(source), source, average=None)
    loop = settings["model"]["init_args"]["prediction"] | {"guidance": guidance, "metrics": {}, "num_samples": 5}
    settings["model"]["init_args"] |= {"prediction": loop, "evaluations": {}}
    settings["trainer"] |= {"callbacks": []}
    prompts = {"prompts": ["a cat", "two dogs"], "source": str(source), "cache": str(tmp_path / "cache")}
    settings["data"] = {"class_path": "Prompts", "init_args": prompts}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    call = ("tests.test_pretrained_training", "predict")
    processes.call_ranks(2, call, tmp_path / "log", file=str(file), world=2)
    predict(str(file), 1)
    (one, *two) = (torch.load(f"{file}.{each}.pt") for each in ("1.0", "2.0", "2.1"))
    assert sorted(one) == sorted([*two[0], *two[1]]) == list(range(5)) and two[0] and two[1]
    assert float(torch.stack(list(one.values())).float().std()) > 5
    for index, image in one.items():
        assert int((image.int() - (two[0] | two[1])[index].int()).abs().max()) <= 1
