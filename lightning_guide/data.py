"""What travels between data and modules: two kinds of batch and the view of the data that a module needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "DataInterface", "SampleBatch"]


class Batch(NamedTuple):
    """Training or held-out examples: `x` (B, *data_shape), `condition` None, labels (B,) or embeddings (B, L, C).

    See `conditions` for what stands for no condition.
    """

    x: Tensor
    condition: Tensor | None = None


class SampleBatch(NamedTuple):
    """Samples to be drawn: `index` int64 (B,) names each one, `condition` int64 (B,) its label or its prompt's number.

    -1 is no condition.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    condition: Tensor


class DataInterface(Protocol):
    """What a module asks of a datamodule."""

    data_shape: tuple[int, ...]
    num_classes: int
    token_channels: int

    def prompts(self) -> Tensor:
        """Embeddings (P, L, C) that samples are drawn under, the same on every rank."""

    def encode(self, raw: Tensor) -> Tensor:
        """Stored data (uint8 images, float points) -> what the denoiser sees, float32 in units of sigma_data."""

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`, rounded and clipped to what can be stored."""

    def reference(self, device: torch.device) -> Iterable[Batch]:
        """The real data that metrics compare with, in stored form: the same on every rank, whenever gone through."""
