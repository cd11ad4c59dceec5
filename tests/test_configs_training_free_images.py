"""The configs for ImageNet and faces, with small randomly initialized networks in place of the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.training_free.schedules import StepContext
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import NamedNetwork
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.face_networks import BiSeNet, smaller, write_face_networks

FOLDER = Path(__file__).parent.parent / "configs" / "training_free" / "images"
FACES = ("faces_parsing", "faces_sketch", "faces_text")
LEVELS = KarrasGrid(3, sigma_min=0.5, sigma_max=5.0)


class SmallModel:
    """The model under evaluation, for images of 3 x 32 x 32."""

    def __init__(self, num_classes: int) -> None:
        sizes: dict[str, Any] = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_resolutions": []}
        network = EDM2UNet([3, 32, 32], num_classes=num_classes, **sizes)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 0:
                    parameter.fill_(0.5)
        self.main: Denoiser = Preconditioned(network).eval()

    def snapshot(self, **_: Any) -> Denoiser:
        raise AssertionError


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with what the configs expect."""
    monkeypatch.chdir(tmp_path)
    write_face_networks(side=32)


@pytest.mark.parametrize(
    "file", ["imagenet", FACES[0], *(pytest.param(file, marks=pytest.mark.slow) for file in FACES[1:])]
)
def test_image_configs_run_with_networks_from_files(file: str, small: None) -> None:
    path = FOLDER / f"{file}.yaml"
    lines = path.read_text().splitlines()
    assert lines[1].startswith("# lightning-guide ") and f"configs/training_free/images/{file}.yaml" in "".join(
        lines[:4]
    )
    models = SmallModel(1000 if file == "imagenet" else 0)
    labels = torch.tensor([3, 7]) if file == "imagenet" else None
    unlabeled = None if labels is None else torch.full_like(labels, -1)
    plain = Euler(LEVELS).sample(models.main, seeds=SampleSeeds(0, range(2)), condition=unlabeled)
    written = read_guidances([str(path)])
    torch.manual_seed(0)
    for name, guidance in build_guidances(smaller(written)).items():
        guided = Euler(LEVELS).sample(guidance.resolve(models), seeds=SampleSeeds(0, range(2)), condition=labels)
        assert bool(guided.x.isfinite().all()) and guided.evaluations == plain.evaluations, name
        assert (guided.x - plain.x).abs().max() > 1e-4, f"{name} has no effect"
        assert not guided.diagnostics["skipped"].any(), name


def test_faces_are_matched_perfectly_by_themselves(small: None) -> None:
    """The published rates are for losses without augmentation: the reference itself has the loss 0."""
    faces = torch.from_numpy(np.load("data/faces.npy"))[:1]
    seeds = SampleSeeds(0, [0])
    trajectory = Trajectory(x=faces, seeds=seeds, sigma=1.0)
    for name in ("faces_parsing", "faces_sketch"):
        guidance: Any = build_guidances(smaller(read_guidances([str(FOLDER / f"{name}.yaml")])))["polyak"]
        context = StepContext(trajectory=trajectory, sigma=1.0, sigma_next=0.5, noise=torch.zeros_like(faces))
        copies = guidance.estimator.draw(faces, context)(faces)
        assert float(guidance.energy(copies.flatten(0, 1), None).max()) == pytest.approx(0, abs=1e-3), name


def test_a_named_network_preprocesses_as_configured(small: None) -> None:
    torch.manual_seed(1)
    direct, x = BiSeNet(5).eval(), 2 * torch.rand(2, 3, 8, 8) - 1
    save_file(direct.state_dict(), "weights/parsing.safetensors")
    sizes = {"size": 12, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    image = F.interpolate((x + 1) / 2, (12, 12), mode="bicubic", align_corners=False, antialias=True)
    mean, std = (torch.tensor(sizes[key])[:, None, None] for key in ("mean", "std"))
    for output in (0, 1):
        network = NamedNetwork(
            "tests.face_networks.BiSeNet",
            "weights/parsing.safetensors",
            options={"num_class": 5},
            output=output,
            **sizes,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(network(x), direct((image - mean) / std)[output])
    assert NamedNetwork("tests.face_networks.Sketcher", "weights/face_sketch.pth")(x.double()).dtype == torch.float64


def test_missing_networks_and_weights_are_refused(small: None) -> None:
    x = torch.zeros(1, 3, 8, 8)
    for name, weights, message in (
        ("tests.face_networks.Missing", None, "there is no network 'tests.face_networks.Missing'"),
        ("nowhere.Network", None, "there is no network 'nowhere.Network'"),
        ("tests.face_networks.no_network", None, "returns a int; expected an nn.Module"),
        ("tests.face_networks.Sketcher", "weights/missing.pth", "there is no file weights/missing.pth"),
        (
            "tests.face_networks.Sketcher",
            "weights/parsing_bisenet.pth",
            "cannot be read from weights/parsing_bisenet.pth",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            NamedNetwork(name, weights)(x)
