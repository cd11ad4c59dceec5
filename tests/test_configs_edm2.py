"""The presets of EDM2 and EDM: published numbers, networks of the published size, and two steps of a shrunken one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_guide.cli import main
from lightning_guide.networks import EDM2UNet
from lightning_guide.runs.models import finished_model
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.learning_rate import InverseSqrtRate
from lightning_guide.utils.files import read_yaml

FOLDER = Path(__file__).parent.parent / "configs/edm2"
# Karras et al. 2024, table 6: Mi images, channels, reference rate, dropout; parameters with 1000 labels on latents
PUBLISHED = {
    "img512-xxs": (2048, 64, 0.0170, 0.0, 31_309_029),
    "img512-xs": (2048, 128, 0.0120, 0.0, 124_713_253),
    "img512-s": (2048, 192, 0.0100, 0.0, 280_212_837),
    "img512-m": (2048, 256, 0.0090, 0.1, 497_807_781),
    "img512-l": (1792, 320, 0.0080, 0.1, 777_498_085),
    "img512-xl": (1280, 384, 0.0070, 0.1, 1_119_283_749),
    "img512-xxl": (896, 448, 0.0065, 0.1, 1_523_164_773),
    "img64-xs": (1024, 128, 0.0120, 0.0, 124_713_253),
    "img64-s": (1024, 192, 0.0100, 0.0, 280_212_837),
    "img64-m": (2048, 256, 0.0090, 0.1, 497_807_781),
    "img64-l": (1024, 320, 0.0080, 0.1, 777_498_085),
    "img64-xl": (640, 384, 0.0070, 0.1, 1_119_283_749),
}
KINDS = {"img512": ([4, 64, 64], -0.4, 1.0, 70_000), "img64": ([3, 64, 64], -0.8, 1.6, 35_000)}


def merged(low: Any, high: Any) -> Any:
    """`high` over `low`, dictionaries key by key."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return low | {key: merged(low.get(key), value) for key, value in high.items()}


def config(preset: str) -> dict[str, Any]:
    return read_yaml(FOLDER / f"{preset}.yaml")


def test_every_preset_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*PUBLISHED, *KINDS, "shrink"}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_preset_is_the_published_one(preset: str) -> None:
    mebi, channels, rate, dropout, parameters = PUBLISHED[preset]
    shape, mean, std, batches = KINDS[preset.split("-")[0]]
    whole = config(preset)
    trainer, model, data = whole["trainer"], whole["model"]["init_args"], whole["data"]["init_args"]
    assert trainer["max_steps"] * 2048 == mebi * 2**20
    assert data["batch_size"] * trainer["accumulate_grad_batches"] * 32 == 2048  # on 32 GPUs
    assert model["loss"]["init_args"]["noise"]["init_args"] == {"mean": mean, "std": std}
    learning = InverseSqrtRate(**model["learning_rate"]["init_args"])
    for n in (0, 4e6, 10e6, 1e8, 1e9):
        expected = rate / max(n / (batches * 2048), 1) ** 0.5 * min(n / 10e6, 1)
        assert learning.at(int(n)) == pytest.approx(expected, rel=1e-12)
    (ema,) = (each["init_args"] for each in trainer["callbacks"] if each["class_path"] == "PostHocEMA")
    assert ema == {"sigma_rels": [0.05, 0.1], "every_images": 8 * 2**20, "dtype": "float16"}
    arguments = model["denoiser"]["init_args"]["network"]["init_args"]
    assert (arguments["model_channels"], arguments["dropout"], arguments["data_shape"]) == (channels, dropout, shape)
    if preset in ("img512-xxl", "img64-xs"):  # all counts: test_networks_edm2_unet.py
        with torch.device("meta"):
            network = EDM2UNet(**arguments)
        count = sum(parameter.numel() for parameter in network.parameters())
        # of the published numbers 128 belong to the uncertainty; on pixels input and output have a channel less
        assert count + 128 == parameters - (0 if shape[0] == 4 else 2 * 9 * channels)


@pytest.mark.parametrize("kind", KINDS)
def test_presets_are_parsed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file by the command line itself: all on top of one another, the last one wins."""
    presets = [name for name in PUBLISHED if name.startswith(f"{kind}-")]
    words = ["fit", *[word for name in (kind, *presets) for word in ("-c", str(FOLDER / f"{name}.yaml"))]]
    with pytest.raises(SystemExit) as left:
        main([*words, "--print_config"])
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    over = config(presets[-1])
    for path in (("trainer", "max_steps"), ("trainer", "default_root_dir"), ("model", "init_args", "learning_rate")):
        here, there = printed, over
        for key in path:
            here, there = here[key], there[key]
        if isinstance(there, dict):  # printed with the package that exports it
            there = there | {"class_path": f"lightning_guide.training.{there['class_path']}"}
        assert merged(here, there) == here, path
    network = printed["model"]["init_args"]["denoiser"]["init_args"]["network"]["init_args"]
    assert network["model_channels"] == PUBLISHED[presets[-1]][1] and network["num_classes"] == 1000


def shards(folder: Path, kind: str) -> None:
    """Writes a few random images or latents."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        with tarfile.open(folder / f"{part}-00000.tar", "w") as tar:
            for i in range(6):
                content = io.BytesIO()
                if kind == "img512":
                    np.save(content, random.random((8, 64, 64), dtype=np.float32))
                else:
                    Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "PNG")
                suffix, last = "npy" if kind == "img512" else "png", 9 if kind == "cifar" else 999
                for name, data in ((suffix, content.getvalue()), ("cls", str(last - i).encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("kind", "size", "data"),
    [
        pytest.param("img64", "s", "imagenet64", marks=pytest.mark.slow),
        ("img512", "m", "imagenet512-latents"),
    ],
)
def test_shrunken_preset_runs_two_steps(
    kind: str, size: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(tmp_path / "data" / data, kind)
    monkeypatch.chdir(tmp_path)
    files = [f"edm2/{kind}-{size}.yaml", "shrink.yaml", "edm2/shrink.yaml"]
    main(["fit", *[word for file in files for word in ("-c", str(FOLDER.parent / file))]])
    run = tmp_path / f"runs/edm2/{kind}-{size}"
    store = SnapshotStore(run / "snapshots")
    assert [(entry.images, entry.sigma_rel) for entry in store.entries()] == [(8, 0.05), (8, 0.1)]
    weights, _ = store.load(store.entries()[0])
    assert weights["network.output.weight"].dtype == torch.float16


def test_edm_of_2022_is_the_published_one() -> None:
    """Karras et al. 2022, table 7, CIFAR-10 and DDPM++."""
    written = read_yaml(FOLDER.parent / "cifar32/edm1.yaml")
    trainer, model, data = written["trainer"], written["model"]["init_args"], written["data"]["init_args"]
    assert trainer["max_steps"] * 512 == 200_000_000 and data["batch_size"] * 8 == 512  # on 8 GPUs
    average = next(each for each in trainer["callbacks"] if each["class_path"] == "HalfLifeEMA")["init_args"]
    assert (average["half_life"], average["ramp"], model["average"]) == (500_000, 0.05, "half_life")
    network = model["denoiser"]["init_args"]["network"]["init_args"]
    assert (network["dropout"], network["augmentation_channels"], network["num_classes"]) == (0.13, 9, 10)
    assert model["learning_rate"]["class_path"] == "ConstantRate"
    assert model["learning_rate"]["init_args"] == {"peak": 0.001, "rampup_images": 10_000_000}
    assert model["optimizer"] == {
        "class_path": "torch.optim.Adam",
        "init_args": {"lr": 0.001, "betas": [0.9, 0.999], "eps": 3.255e-12},
    }
    loss = model["loss"]["init_args"]
    assert loss["augmentation"]["init_args"] == {"probability": 0.12}
    assert loss["loss"]["init_args"]["uncertainty"] is False
    assert loss["loss"]["init_args"]["noise"]["init_args"] == {"mean": -1.2, "std": 1.2}
    assert model["evaluations"]["unguided"]["sampler"]["init_args"]["grid"]["init_args"] == {"num_steps": 18}


def test_edm_of_2022_runs_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 8 channels in place of 128; the half-life average is stored apart and is what is evaluated afterwards."""
    shards(tmp_path / "data/cifar10", "cifar")
    (tmp_path / "data/cifar10/val-00000.tar").rename(tmp_path / "data/cifar10/test-00000.tar")
    monkeypatch.chdir(tmp_path)
    files = [FOLDER.parent / "cifar32/edm1.yaml", FOLDER.parent / "shrink.yaml"]
    network = "--model.init_args.denoiser.init_args.network.init_args"
    words = [f"{network}.model_channels=8", f"{network}.num_blocks=1", "--data.init_args.batch_size=4"]
    main(["fit", *[word for file in files for word in ("-c", str(file))], *words, "--data.init_args.size=32"])
    run = tmp_path / "runs/cifar32/edm1"
    entries = SnapshotStore(run / "half_life/snapshots").entries()
    assert [(entry.images, entry.sigma_rel) for entry in entries] == [(8, 0.0629)]  # ln 2 / .05 = g + 1 while it grows
    half_life, _ = SnapshotStore(run / "half_life/snapshots").load(entries[0])
    evaluated = finished_model(run, None, "half_life").state_dict()
    assert all(torch.equal(evaluated[name], tensor) for name, tensor in half_life.items())
    power = SnapshotStore(run / "snapshots").tensors(images=8, sigma_rel=0.05)
    assert any(not torch.equal(power[name], tensor) for name, tensor in half_life.items())
