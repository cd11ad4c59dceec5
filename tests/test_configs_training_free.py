"""Every guidance of configs/training_free works with small guides and guides samples independently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.denoiser import Denoiser
from lightning_guide.networks import EDM2UNet, ImageAutoencoder, ImageToImageNetwork
from lightning_guide.networks.classifiers import NoisyClassifier, SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.snapshots import SnapshotStore

FOLDER = Path(__file__).parent.parent / "configs" / "training_free"
FILES = sorted(FOLDER.glob("*.yaml"))  # those in images/: test_configs_training_free_images.py
LEVELS = KarrasGrid(3, sigma_min=0.1, sigma_max=5.0)


class SmallModel:
    """The model under evaluation."""

    def __init__(self) -> None:
        sizes: dict[str, Any] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
        network = EDM2UNet([1, 8, 8], num_classes=10, attention_resolutions=[4], **sizes)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 0:
                    parameter.fill_(0.5)
        self.main: Denoiser = Preconditioned(network).eval()

    def snapshot(self, **_: Any) -> Denoiser:
        raise AssertionError


@pytest.fixture
def guides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a working folder with the guides and hidden images that the configs expect."""
    monkeypatch.chdir(tmp_path)
    networks: dict[str, Any] = {
        "guide": SmallClassifier([1, 8, 8], num_classes=10, widths=[8, 16]),
        "noisy_classifier": NoisyClassifier([1, 8, 8], num_classes=10, widths=[8, 16]),
        "parts": ImageToImageNetwork([1, 8, 8], 3, widths=[8]),
        "sketch": ImageToImageNetwork([1, 8, 8], 1, widths=[8]),
        "autoencoder": ImageAutoencoder([1, 8, 8], widths=[8, 16]),
    }
    for name, network in networks.items():
        with torch.no_grad():
            if hasattr(network, "head"):
                network.head.weight.mul_(20)
        store = SnapshotStore(Path(f"runs/digits/{name}/snapshots"))
        store.save(network.state_dict(), images=8, sigma_rel=0.0, recipe=network.recipe, planned_images=8)
    Path("data").mkdir()
    np.save("data/digits.npy", np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_guidance_changes_samples_independently(file: Path, guides: None) -> None:
    lines = file.read_text().splitlines()
    assert lines[1].startswith("# lightning-guide ") and f"configs/training_free/{file.relative_to(FOLDER)}" in lines[1]
    models, labels = SmallModel(), torch.tensor([3, 7])
    plain = Heun(LEVELS).sample(models.main, seeds=SampleSeeds(0, range(2)), condition=torch.tensor([-1, -1]))
    for name, guidance in build_guidances(read_guidances([str(file)])).items():
        resolved = guidance.resolve(models)
        guided = Heun(LEVELS).sample(resolved, seeds=SampleSeeds(0, range(2)), condition=labels)
        assert bool(guided.x.isfinite().all()) and guided.evaluations == plain.evaluations, name
        assert (guided.x - plain.x).abs().max() > 1e-4, f"{name} has no effect"
        assert not guided.diagnostics["skipped"].any(), name
        again = Heun(LEVELS).sample(resolved, seeds=SampleSeeds(0, [1]), condition=labels[1:])
        torch.testing.assert_close(again.x[0], guided.x[1], rtol=1e-3, atol=2e-4, msg=f"{name} depends on its batch")
