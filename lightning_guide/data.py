"""Batch types and the two interfaces between datamodules and modules, `DataInterface` and `SampleSource`.

A module reads its datamodule only as `DataInterface` (`data_of`); a datamodule reads the module in training only as
`SampleSource`, through its trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["Batch", "DataInterface", "Prompts", "SampleBatch", "SampleSource", "data_of"]


class Batch(NamedTuple):
    """Training or held-out examples: `x` (B, *data_shape), `condition` None, labels (B,) or embeddings (B, L, C).

    `lightning_guide.conditioning` defines the values that mean "no condition".
    """

    x: Tensor
    condition: Tensor | None = None


class SampleBatch(NamedTuple):
    """Samples to be drawn: `index` int64 (B,) and `condition` int64 (B,), the label or the number of the prompt.

    The condition -1 means no condition.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    condition: Tensor


class Prompts(Protocol):
    """Embeddings (P, L, C) that condition samples, a tensor or rows of a file that are read when they are needed."""

    def __len__(self) -> int:
        """Return P."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the embeddings (R, L, C) of `rows` (R,), int64 on the CPU, float32."""


class DataInterface(Protocol):
    """Interface of a datamodule that modules, metrics and callbacks use, with nothing else.

    Modules check the shape, classes and embeddings of their network in `setup`, count images by `batch_size`, condition
    samples on `prompts`, decode samples with `decode`, and pass the interface to metrics, which read `reference`.
    `encode` is called by the datamodule itself, on each batch, and by callbacks.

    Attributes:
        data_shape: shape of one x, without the batch.
        num_classes: number of labels, 0 for data without labels.
        token_channels: C of embeddings (L, C), 0 for data without embeddings.
        batch_size: training and held-out examples per process and micro-step.
    """

    data_shape: tuple[int, ...]
    num_classes: int
    token_channels: int
    batch_size: int

    def prompts(self) -> Prompts:
        """Return the embeddings (P, L, C) that samples are conditioned on, identical on every rank."""

    @property
    def prompt_texts(self) -> Sequence[str] | None:
        """Texts of these prompts in their order, None if they are not known."""

    def encode(self, raw: Tensor) -> Tensor:
        """Convert stored data (uint8 images, float points) to the denoiser's scale, float32 in units of sigma_data."""

    def decode(self, x: Tensor) -> Tensor:
        """Invert `encode`, rounded and clipped to the range that can be stored."""

    def reference(self, device: torch.device) -> Iterable[Batch]:
        """Iterate over the real data for metrics, in stored form; identical on every rank and every iteration."""


class SampleSource(Protocol):
    """Interface of a module that a datamodule uses, with nothing else.

    The dataloader hooks of `datamodules.DiffusionData` get it from `trainer.lightning_module`: `train_dataloader`
    reads `images_seen` whenever an iteration begins, the others call `sample_sets` once when Lightning builds the
    loaders, after `setup` of the module.

    Attributes:
        images_seen: training images so far, over all processes; position in the training stream.
    """

    images_seen: int

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """Return datasets of the samples to be drawn in "fit", "validate", "test" or "predict", with batch sizes."""


def data_of(trainer: pl.Trainer) -> DataInterface:
    """Return the datamodule of a trainer, as modules and callbacks may use it."""
    return cast(DataInterface, trainer.datamodule)  # type: ignore[attr-defined]
