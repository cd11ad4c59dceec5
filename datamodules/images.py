"""Images: stored as uint8 (C, H, W), seen by the denoiser as x / 127.5 - 1 in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DiffusionData
from datamodules.examples import Visits
from lightning_guide.data import Batch

__all__ = ["ImageData"]


class ImageData(DiffusionData):
    """Base of datamodules of pictures, which travel to the device as bytes."""

    def __init__(self, *, batch_size: int, num_workers: int = 0, seed: int = 0, flip: bool = False) -> None:
        """`flip` mirrors training pictures left to right with probability 1/2, by (seed, stream position)."""
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.flip = flip

    def encode(self, raw: Tensor) -> Tensor:
        """x = raw / 127.5 - 1, float32, for `raw` uint8 (B, C, H, W)."""
        return raw.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """round(127.5 (x + 1)) clipped to 0..255, uint8 (B, C, H, W)."""
        return (x.to(torch.float32) * 127.5 + 127.5).round().clip(0, 255).to(torch.uint8)

    def visits(self) -> Dataset[Batch]:
        """The training stream, mirrored if asked for."""
        return Visits(self.training(), seed=self.seed, flip=self.flip)
