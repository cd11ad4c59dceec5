"""Small networks of every kind, and samples of them on the CPU and on the emulated device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.inference import fuse_weights
from lightning_guide.networks import (
    MDM,
    BetaConditioned,
    DDPMpp,
    DiffusionTransformer,
    EDM2UNet,
    LogDensityMLP,
    NCSNpp,
    PointMLP,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.preconditioning import Consistency, EpsilonPrediction, Preconditioned, RectifiedFlow
from lightning_guide.samplers import Euler, Sampler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.gft import GuidanceFreeLoss
from lightning_guide.training.losses import (
    EDMLoss,
    EpsilonLoss,
    FlowMatchingLoss,
    ScoreMatchingLoss,
    TrainingLoss,
    VelocityLoss,
)
from scripts.lib.emulated_accelerator import EmulatedStrategy
from scripts.lib.emulated_device import DEVICE, ROOT, EmulatedDevice, Wait
from tests.small_networks import randomize_weights

GRID = KarrasGrid(2, sigma_min=0.3, sigma_max=5.0)
EULER = Euler(GRID)
SHAPE = (1, 8, 8)
UNET: dict[str, Any] = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [4]}
BLOCKS: dict[str, Any] = {"channels": 16, "depth": 3, "heads": 2}


def transformer(**options: Any) -> DiffusionTransformer:
    return DiffusionTransformer(SHAPE, **{**BLOCKS, "num_classes": 4, **options})


NETWORKS: dict[str, Callable[[], Denoiser]] = {
    "DiT": lambda: Preconditioned(transformer()),
    "DiT of texts": lambda: Preconditioned(transformer(num_classes=0, token_channels=6)),
    "EDM2": lambda: Preconditioned(EDM2UNet(SHAPE, num_classes=4, **UNET)),
    "EDM2 of texts": lambda: Preconditioned(EDM2UNet(SHAPE, token_channels=6, **UNET)),
    "DDPM++": lambda: Preconditioned(DDPMpp(SHAPE, num_classes=4, **UNET)),
    "NCSN++": lambda: Preconditioned(NCSNpp(SHAPE, num_classes=4, **UNET)),
    "MDM": lambda: Preconditioned(
        MDM((7, 12), token_channels=6, channels=16, depth=3, heads=2, hidden=24), EpsilonPrediction(NoiseSchedule())
    ),
    "points": lambda: Preconditioned(PointMLP((2,), width=8)),
    "log density": lambda: LogDensityMLP(width=8, layers=2),
    "GFT": lambda: BetaConditioned(Preconditioned(transformer())),
    "flow": lambda: Preconditioned(transformer(), RectifiedFlow()),
    "consistency": lambda: Preconditioned(transformer(), Consistency()),
}


LOSSES: dict[str, Callable[[], TrainingLoss]] = {
    **dict.fromkeys(NETWORKS, EDMLoss),
    "MDM": EpsilonLoss,
    "points": ScoreMatchingLoss,
    "GFT": lambda: GuidanceFreeLoss(EDMLoss()),
    "flow": FlowMatchingLoss,
    "consistency": VelocityLoss,
}
"""A loss for each of `NETWORKS`."""


def make_network(name: str) -> Denoiser:
    """One of `NETWORKS` with random weights, in which no branch is zero."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    if name != "log density":
        randomize_weights(model)
    return model.eval().requires_grad_(False)


def small_transformer() -> Denoiser:
    """One block."""
    model = Preconditioned(transformer(depth=1))
    randomize_weights(model)
    return model.eval().requires_grad_(False)


def condition_of(model: Denoiser, count: int = 3) -> Tensor | None:
    """Labels or texts of `count` samples, on the CPU."""
    if model.token_channels:
        tokens = 1 if model.data_shape == (7, 12) else 3
        return torch.randn(count, tokens, model.token_channels, generator=torch.Generator().manual_seed(2))
    return torch.tensor([0, 3, 1])[:count] if model.num_classes else None


class Models:
    """A model under evaluation, with other weights as every snapshot, and prompts for a model of texts."""

    def __init__(self, main: Denoiser) -> None:
        self.main = main
        self.other = copy.deepcopy(main)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.other.parameters():
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        self.prompts = condition_of(main) if main.token_channels else None

    def snapshot(self, **_: Any) -> Denoiser:
        return self.other

    def to(self, device: torch.device) -> Models:
        """Copies on the device; prompts stay on the CPU, as those of a run."""
        moved = copy.copy(self)
        moved.main, moved.other = copy.deepcopy(self.main).to(device), copy.deepcopy(self.other).to(device)
        return moved


def waits_of_samples(
    models: Models,
    build: Callable[[Models], Denoiser] = lambda models: models.main,
    sampler: Sampler = EULER,
    *,
    given: Tensor | None = None,
) -> list[Wait]:
    """Draw the same three samples on the CPU and on the device; they must be equal. Return the waits of the latter.

    `build` makes the denoiser of the models. The condition (default: that of the tests) is on the CPU, as of users.
    """
    condition, x, waits = condition_of(models.main) if given is None else given, [], []
    with EmulatedDevice() as device:
        for place in (torch.device("cpu"), DEVICE):
            model = fuse_weights(build(models.to(place)).eval())
            device.forget()
            drawn = sampler.sample(model, seeds=SampleSeeds(0, range(3)), condition=condition, device=place).x
            assert drawn.device == place
            waits = list(device.waits)
            x.append(drawn.cpu())
    scale = float(x[0].abs().max())
    torch.testing.assert_close(x[1], x[0], rtol=0, atol=1e-4 * scale)
    return waits


def unexplained(waits: list[Wait]) -> set[str]:
    """Places in the library and the callbacks where the host waits and no comment next to the line says why.

    Metrics wait to be prepared and computed, figures for what they draw, once in an evaluation. Waits of metrics in a
    batch are counted by other tests.
    """
    found = set()
    for place in {wait.place for wait in waits}:
        file, _, number = place.partition(":")
        ours = file.startswith(("lightning_guide/", "callbacks/", "datamodules/"))
        if not ours or any(part in file for part in ("/metrics/", "/diagnostics/", "/fractal2d/", "_figure.py")):
            continue
        lines = (ROOT / file).read_text().splitlines()[max(int(number) - 4, 0) : int(number)]
        if not any("wait" in line.partition("#")[2] for line in lines):
            found.add(place)
    return found


Options = dict[str, Any]
"""Those of a trainer."""


def on_both(work: Callable[[Path, Options], Any], folder: Path) -> tuple[Any, Any]:
    """What `work` returns on the CPU, and on the device, where a comment explains each wait."""
    expected = work(folder / "cpu", {})
    with EmulatedDevice() as device:
        found = work(folder / "device", {"accelerator": "auto", "strategy": EmulatedStrategy()})
    assert device.waits
    assert not (places := unexplained(device.waits)), places
    return expected, found


def assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same keys, tensors, numbers and texts, up to rounding, but for times."""
    assert found.keys() == expected.keys() and found
    for key, value in expected.items():
        if key == "seconds":
            continue
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)
        elif isinstance(value, dict):
            assert_near(found[key], value)
        else:
            assert found[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key
