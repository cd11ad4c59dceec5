"""Helpers for tests of the snapshot store: weights, a tiny denoiser, functions that fill a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.recipe import HasRecipe

RECIPE = {"class_path": "somewhere.Network", "init_args": {"width": 3}}


class Tiny(Denoiser):
    """A linear denoiser with one parameter, one floating buffer and one integer buffer."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.data_shape, self.num_classes, self.sigma_data = (width,), 0, 0.5
        self.weight = nn.Parameter(torch.randn(width, width))
        self.register_buffer("frequencies", torch.randn(width))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x @ self.weight.T


class NoDenoiser(HasRecipe, nn.Module):
    """A module that a recipe can build, but not a denoiser."""


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(3, 5, generator=generator),
        "gain": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 2),
        "frequencies": torch.randn(4, generator=generator, dtype=torch.float64),
        "steps": torch.tensor(seed),
    }


def save(store: SnapshotStore, images: int, sigma_rel: float = 0.05, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"recipe": RECIPE, "planned_images": 1000, "buffers": ["frequencies"]}
    return store.save(weights(images), images=images, sigma_rel=sigma_rel, **(arguments | changes))


def run(store: SnapshotStore, times: list[int], *, plan: int = 1000) -> None:
    """Store both default averages at each of the times."""
    for images in times:
        for width in (0.05, 0.1):
            save(store, images, width, planned_images=plan)


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}
