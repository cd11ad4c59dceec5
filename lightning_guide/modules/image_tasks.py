"""Training of small networks that see something in a picture: its parts, its outline, or itself through a latent.

The targets are computed from the picture itself, so that any pictures will do. A network that has learned one then is a
differentiable eye for guidance: `NetworkDistance(RunNetwork(run), reference)`, or an autoencoder for MPGD.
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
    """Parts of strokes `x` (B, 1, H, W) on a dark ground: 0 ground, 1 ink (x > threshold), 2 holes, (B, H, W) int64.

    A hole is ground from which no way leads to the border, over sides of pixels.
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
    """Largest minus smallest value of the 3 x 3 pixels around each, (B, C, H, W), of `x` in [-1, 1]: 0 ... 2."""
    return F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1)


class ImageTask(ABC):
    """What a network is to see."""

    @abstractmethod
    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """The loss (B,) of `network` for pictures `x` (B, C, H, W)."""


class Parts(ImageTask):
    """Cross-entropy with the three `part_masks`; the network has three channels out, the logits. For one channel in."""

    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Mean over the pixels, (B,)."""
        return F.cross_entropy(network(x), part_masks(x), reduction="none").mean((1, 2))


class Sketch(ImageTask):
    """Squared distance to the `outline`; the network has as many channels out as in."""

    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Mean over the pixels, (B,)."""
        return (network(x) - outline(x)).square().flatten(1).mean(1)


class Reconstruction(ImageTask):
    """Squared distance to the picture itself, for an autoencoder."""

    def losses(self, network: nn.Module, x: Tensor) -> Tensor:
        """Mean over the pixels, (B,)."""
        return (network(x) - x).square().flatten(1).mean(1)


class ImageTaskModule(SupervisedModule):
    """Training of a network for a `ImageTask`; see `SupervisedModule`."""

    def __init__(
        self,
        network: nn.Module,
        task: ImageTask,
        *,
        optimizer: OptimizerCallable | None = None,
        seed: int = 0,
    ) -> None:
        """`network` such as `ImageToImageNetwork` or `ImageAutoencoder`; `task` is what it is to learn."""
        super().__init__(network, optimizer=optimizer, seed=seed)
        self.task = task

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean loss () of a batch."""
        return self.task.losses(self.network, batch.x).mean()

    def measures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss (B,)."""
        return {"loss": self.task.losses(self.network, batch.x)}
