"""Models of the checks, with random weights in which no branch is zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.networks import DiffusionTransformer, EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from scripts.benchmarks.direct_edm2 import DirectEDM2
from scripts.benchmarks.edm2 import Baseline
from scripts.benchmarks.gpu.place import Size

__all__ = ["CLASSES", "SMALL", "Pair", "baseline", "draw", "edm2", "labels", "randomized"]

CLASSES = 4
SAMPLER = Euler(KarrasGrid(2, sigma_min=0.3, sigma_max=5.0))
SHAPE = (1, 8, 8)

SMALL: dict[str, Callable[[], Denoiser]] = {
    "DiT": lambda: Preconditioned(DiffusionTransformer(SHAPE, num_classes=CLASSES, channels=16, depth=3, heads=2)),
    "EDM2": lambda: Preconditioned(
        EDM2UNet(
            SHAPE,
            num_classes=CLASSES,
            model_channels=8,
            channel_mult=[1, 2],
            num_blocks=1,
            attention_resolutions=[4],
        )
    ),
}
"""Networks on which results are compared."""


def randomized(model: Denoiser) -> Denoiser:
    """Return `model` with random weights, frozen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
            else:
                parameter.normal_(std=0.3, generator=generator)
    return model.eval().requires_grad_(False)


class Pair:
    """A model under evaluation, and another one in place of every snapshot of it."""

    prompts = None

    def __init__(self, main: Denoiser) -> None:
        self.main = randomized(main)
        self.other = copy.deepcopy(self.main)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.other.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))

    def snapshot(self, **_: Any) -> Denoiser:
        """Return the other model."""
        return self.other

    def to(self, device: torch.device) -> Pair:
        """Return copies on `device`."""
        moved = copy.copy(self)
        moved.main, moved.other = copy.deepcopy(self.main).to(device), copy.deepcopy(self.other).to(device)
        return moved


def labels(count: int) -> Tensor:
    """Return labels (count,) on the host, as a user gives them."""
    return torch.arange(count) % CLASSES


def draw(denoiser: Denoiser, device: torch.device, count: int, sampler: Euler = SAMPLER) -> Tensor:
    """Return samples `count` of two steps, on `device`."""
    return sampler.sample(denoiser, seeds=SampleSeeds(0, range(count)), condition=labels(count), device=device).x


def edm2(size: Size, *, channels: int | None = None) -> Preconditioned:
    """Return the EDM2 model of the benchmarks, or one with other `channels`."""
    network = EDM2UNet(
        (3, size.side, size.side),
        num_classes=CLASSES,
        model_channels=channels or size.channels,
        channel_mult=list(range(1, size.levels + 1)),
        attention_resolutions=_attention(size),
    )
    return Preconditioned(network)


def baseline(size: Size) -> Baseline:
    """Return the direct formulation of the same network."""
    network = DirectEDM2(
        3,
        size.side,
        num_classes=CLASSES,
        model_channels=size.channels,
        channel_mult=list(range(1, size.levels + 1)),
        attn_resolutions=_attention(size),
    )
    return Baseline(network, (3, size.side, size.side))


def _attention(size: Size) -> list[int]:
    return [side for side in (16, 8) if side <= size.side >> (size.levels > 1)]
