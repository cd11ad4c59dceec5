"""Every guidance of configs/guidance works on both architectures, and does something, or needs texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.networks import DiffusionTransformer, EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from tests.guidance_files import NO_TEXTS, OF_TEXTS, guidances_of

FOLDER = Path(__file__).parent.parent / "configs" / "guidance"
FILES = sorted(FOLDER.rglob("*.yaml"))
LEVELS = KarrasGrid(3, sigma_min=0.1, sigma_max=5.0)


def network(kind: str, seed: int) -> Preconditioned:
    """A small network with weights that are not those of an untrained one, whose output is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "unet":
            sizes = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [8, 4]}
            net = EDM2UNet([1, 8, 8], num_classes=10, dropout=0.1, **sizes)
        else:
            net = DiffusionTransformer([1, 8, 8], num_classes=10, patch_size=2, channels=32, depth=4, heads=2)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim == 0:
                    parameter.fill_(0.5)
                elif not parameter.any():
                    parameter.normal_(std=0.3)
    return Preconditioned(net).eval()


class Two:
    """A model and a worse one."""

    def __init__(self, kind: str) -> None:
        self.main, self.other = network(kind, 0), network(kind, 1)

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        return self.other


@pytest.fixture(scope="module", params=["unet", "transformer"])
def models(request: pytest.FixtureRequest) -> Two:
    return Two(request.param)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_method_guides(file: Path, models: Two) -> None:
    lines = file.read_text().splitlines()
    assert lines[1].startswith("# lightning-guide ") and f"configs/guidance/{file.relative_to(FOLDER)}" in lines[1]
    seeds, labels = (0, range(2)), torch.tensor([3, 7])
    plain = Heun(LEVELS).sample(models.main, seeds=SampleSeeds(*seeds), condition=labels)
    before = {name: value.clone() for name, value in models.main.state_dict().items()}
    for name, guidance in guidances_of(file).items():
        if file.stem in OF_TEXTS:
            with pytest.raises(ValueError, match=NO_TEXTS):
                guidance.resolve(models)
            continue
        guided = Heun(LEVELS).sample(guidance.resolve(models), seeds=SampleSeeds(*seeds), condition=labels)
        assert bool(guided.x.isfinite().all()), name
        assert (guided.x - plain.x).abs().max() > 1e-4, f"{name} does nothing"
        assert guided.evaluations >= plain.evaluations - 2, name
        again = Heun(LEVELS).sample(guidance.resolve(models), seeds=SampleSeeds(0, [1]), condition=labels[1:])
        torch.testing.assert_close(again.x[0], guided.x[1], rtol=1e-3, atol=2e-4, msg=f"{name} depends on its batch")
    after = models.main.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = Heun(LEVELS).sample(models.main, seeds=SampleSeeds(*seeds), condition=labels)
    assert torch.equal(again.x, plain.x), "the positive network has changed"
