"""Sets of random images in files, their scores, and metrics of the images themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.commands.score import score
from lightning_guide.evaluation import MeanMetric, SampleMetric
from lightning_guide.utils.images import encode_png
from tests.features import RandomFeatures

__all__ = ["Brightness", "LabeledMeans", "images", "scored", "values", "write"]


def images(count: int, seed: int, *, size: int = 20, contrast: float = 1.0) -> Tensor:
    """Return smooth random images uint8 (count, 3, size, size)."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * contrast
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (smooth * 50 + 128).clip(0, 255).to(torch.uint8)


def write(folder: Path, x: Tensor) -> Path:
    """Write PNG files as `predict` names them."""
    for index, image in enumerate(x):
        path = folder / f"{index // 1000 * 1000:06d}/{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
    return folder


def scored(
    *samples: Path | str, against: Path | str, out: Path, extractor: Any = None, **options: Any
) -> dict[str, Any]:
    """Return the results of `score`."""
    options = {"device": "cpu", "resamples": 0, **options}
    words = [str(each) for each in samples]
    score(words, against=str(against), extractor=extractor or RandomFeatures(), out=str(out / "s.json"), **options)
    result: dict[str, Any] = json.loads((out / "s.json").read_text())
    return result


def values(result: dict[str, Any], place: Path | str | None = None) -> dict[str, float]:
    """Return the values of one set."""
    found = result["sets"][str(place)] if place is not None else next(iter(result["sets"].values()))
    return {name: each["value"] for name, each in found["metrics"].items()}


class LabeledMeans(SampleMetric):
    """Mean pixel of the samples with a label, and that of all, read from images."""

    reads_data = False

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("sums", 4)

    def prepare(self, reference: Any) -> None:
        """Read nothing."""

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add images."""
        means = x.double().mean((1, 2, 3))
        labeled = torch.zeros(len(x)) if condition is None else (condition >= 0)
        self.sums += torch.stack([(means * labeled).sum(), labeled.sum(), means.sum(), means.new_tensor(len(x))])

    def compute(self) -> dict[str, Tensor]:
        """Return both."""
        return {"labeled": self.sums[0] / self.sums[1], "all": self.sums[2] / self.sums[3]}


class Brightness(MeanMetric):
    """Mean pixel of the samples with a label, of all if none has one."""

    key = "brightness"

    def prepare(self, reference: Any) -> None:
        """Read nothing."""

    def values(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and rows."""
        rows = torch.arange(len(x)) if condition is None else (condition >= 0).nonzero()[:, 0]
        return x.double().mean((1, 2, 3))[rows], rows
