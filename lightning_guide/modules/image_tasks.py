"""Training of image-to-image guide networks: part segmentation, outlines, autoencoders.

The targets are computed from the image itself, so any data set of images works. A trained network is a differentiable
reference network for guidance: `NetworkDistance(RunNetwork(run), reference)`, or an autoencoder for MPGD.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.modules.supervised import SupervisedModule

__all__ = ["Parts", "ImageTask", "ImageTaskModule", "Reconstruction", "Sketch", "outline", "part_masks"]


def part_masks(x: Tensor, threshold: float = 0.0) -> Tensor:
    """Return the parts of strokes `x` (B, 1, H, W): 0 background, 1 ink (x > threshold), 2 holes, (B, H, W) int64.

    A hole is background that is not 4-connected to the border.
    """
    ink = x[:, 0] > threshold
    inner = torch.zeros_like(ink)
    inner[:, 1:-1, 1:-1] = True
    reached = ~ink & ~inner
    while True:
        grown = reached.clone()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= ~ink
        if torch.equal(grown, reached):
            return ink.long() + 2 * (~ink & ~reached).long()
        reached = grown


def outline(x: Tensor) -> Tensor:
    """Return the largest minus the smallest value in 3 x 3 pixels, (B, C, H, W) in [0, 2], of `x` in [-1, 1]."""
    return F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1)


class ImageTask(ABC):
    """Base of the tasks: a loss of the network whose target is computed from the image."""

    @abstractmethod
    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the loss (B,) of `network` for images `x` (B, C, H, W)."""


class Parts(ImageTask):
    """Segmentation into the three `part_masks` by cross-entropy: one input channel, three output channels (logits)."""

    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the mean cross-entropy over pixels, (B,)."""
        return F.cross_entropy(network(x), part_masks(x), reduction="none").mean((1, 2))


class Sketch(ImageTask):
    """Regression of the `outline` by squared distance; the network has as many output as input channels."""

    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the mean squared distance over pixels, (B,)."""
        return (network(x) - outline(x)).square().flatten(1).mean(1)


class Reconstruction(ImageTask):
    """Reconstruction of the image by squared distance, for an autoencoder."""

    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the mean squared distance over pixels, (B,)."""
        return (network(x) - x).square().flatten(1).mean(1)


class ImageTaskModule(SupervisedModule):
    """Training of a network for an `ImageTask`; see `SupervisedModule`."""

    def __init__(
        self,
        network: nn.Module,
        task: ImageTask,
        *,
        optimizer: OptimizerCallable | None = None,
        seed: int = 0,
    ) -> None:
        """Configure training of `network`, such as `ImageToImageNetwork` or `ImageAutoencoder`, for `task`."""
        super().__init__(network, optimizer=optimizer, seed=seed)
        self.task = task

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean loss () of a batch."""
        return self.task.losses(self.network, batch.x).mean()

    def measures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss (B,)."""
        return {"loss": self.task.losses(self.network, batch.x)}
