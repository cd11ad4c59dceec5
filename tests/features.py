"""Metrics of rows of features, and a network of small random features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_guide.data import Batch
from lightning_guide.evaluation import MIND, ModuleFeatures, SampleMetric

__all__ = ["RandomFeatures", "RandomNetwork", "directions_of", "score"]


def score(metric: SampleMetric, real: Tensor, fake: Tensor, *, size: int = 64) -> dict[str, float]:
    """Return the metric of rows in batches of `size`."""
    metric.prepare([Batch(part) for part in real.split(size)])
    for part in fake.split(size):
        metric.update(part, None)
    return {key: value.item() for key, value in metric.compute().items()}


def directions_of(metric: MIND, width: int) -> Tensor:
    """Return the directions (P, width) of a metric, from the projections of the unit vectors."""
    metric.prepare([Batch(torch.eye(width))])
    rows = []
    for axis in range(width):  # of one point on an axis the projection is the component of the direction
        metric.prepare([Batch(torch.eye(width)[axis : axis + 1])])
        rows.append(metric.reference_sorted[:, 0])
    return torch.stack(rows, dim=1)


class RandomNetwork(nn.Module):
    """Random features (B, 32) and logits (B, 10) of images of any size."""

    kernel: Tensor
    head: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("kernel", torch.randn(8, 3, 3, 3, generator=generator) / 5)
        self.register_buffer("head", torch.randn(32, 10, generator=generator))

    def maps(self, x: Tensor) -> Tensor:
        """Return the maps (B, 8, *)."""
        return nn.functional.conv2d(x, self.kernel, stride=2).abs()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return nn.functional.adaptive_avg_pool2d(self.maps(x), 2).flatten(1)


class RandomFeatures(ModuleFeatures):
    """The features with logits and spatial features; `passes` counts the images that the network has seen."""

    def __init__(self) -> None:
        super().__init__(RandomNetwork())
        self.passes = 0

    def extract(self, x: Tensor) -> Tensor:
        """Return the features."""
        self.passes += len(x)
        return super().extract(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self(x) @ self.network().head

    def spatial(self, x: Tensor) -> Tensor:
        """Return 3 channels at 3 x 3 places."""
        maps = self.network().maps(x.to(torch.float32) / 127.5 - 1)
        return nn.functional.adaptive_avg_pool2d(maps[:, :3], 3).flatten(1)
