"""Images: stored as uint8 (C, H, W), seen by the denoiser as x / 127.5 - 1 in [-1, 1].

Data modules of pictures that lie in files: shards, folders, archives.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DiffusionData
from datamodules.examples import Examples, Visits
from datamodules.records import RecordExamples
from lightning_guide.data import Batch

__all__ = ["ImageData", "RecordImages", "Split"]


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


Split = Literal["train", "heldout"]


_CACHE_BELOW = 2**30  # bytes


class RecordImages(ImageData):
    """Base: a subclass gives the records of both splits. Each process decodes and keeps its own copy if they fit."""

    def __init__(
        self,
        *,
        num_classes: int,
        size: int | None,
        cache: bool | None,
        flip: bool,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        """As `Shards`; a subclass calls this when `first` can be called.

        Raises:
            ValueError: if `num_classes` or `size` mean nothing.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, flip=flip)
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; expected 0 (no labels) or more")
        if size is not None and size < 1:
            raise ValueError(f"size is {size}; expected at least 1 pixel")
        self.num_classes, self.size, self.cache = num_classes, size, cache
        shape = (3, size, size) if size is not None else self.first().shape
        assert shape is not None
        self.data_shape = shape

    @abstractmethod
    def first(self) -> RecordExamples:
        """Some training pictures as they are, the first of which says what size all of them have."""

    @abstractmethod
    def records(self, split: Split) -> RecordExamples:
        """The pictures of a split."""

    def training(self) -> Examples:
        """The training set.

        Raises:
            ValueError: for damaged files, a missing or wrong label, or a picture of the wrong size.
        """
        return self._train

    def heldout(self) -> Examples:
        """The held-out set.

        Raises:
            ValueError: for damaged files, a missing or wrong label, or a picture of the wrong size.
        """
        return self._heldout

    @property
    def corrupt(self) -> list[str]:
        """Names of all records found corrupt so far by this process and its workers."""
        return [name for records in self._records.values() for name in records.corrupt]

    @cached_property
    def _train(self) -> Examples:
        return self._examples("train")

    @cached_property
    def _heldout(self) -> Examples:
        return self._examples("heldout")

    @cached_property
    def _records(self) -> dict[Split, RecordExamples]:
        """The sets opened so far."""
        return {}

    def _examples(self, split: Split) -> Examples:
        """Opens a set, and decodes it if it is to be cached."""
        records = self.records(split)
        self._records[split] = records
        if records.shape != self.data_shape:
            raise ValueError(
                f"the {split} pictures in {records.place} have shape {records.shape}; expected {self.data_shape} as in "
                "training (set `size` to crop and shrink all pictures to one size)"
            )
        cache = records.nbytes() < _CACHE_BELOW if self.cache is None else self.cache
        return records.decoded() if cache else records
