"""Base datamodules of images: `ImageData`, and `RecordImages` for images in files (shards, folders, archives).

Images are stored as uint8 (C, H, W); the denoiser receives x / 127.5 - 1 in [-1, 1].
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Literal

from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DiffusionData
from datamodules.examples import Examples, Visits
from datamodules.records import RecordExamples
from lightning_guide.data import Batch
from lightning_guide.utils.images import from_pixels, to_pixels

__all__ = ["ImageData", "RecordImages", "Split"]


class ImageData(DiffusionData):
    """Base of datamodules of images, which are transferred to the device as bytes."""

    def __init__(self, *, batch_size: int, num_workers: int = 0, seed: int = 0, flip: bool = False) -> None:
        """Set `flip` to mirror training images left to right with probability 1/2, drawn by (seed, stream position)."""
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.flip = flip

    def encode(self, raw: Tensor) -> Tensor:
        """Return x = raw / 127.5 - 1, float32, for `raw` uint8 (B, C, H, W)."""
        return from_pixels(raw)

    def decode(self, x: Tensor) -> Tensor:
        """Return round(127.5 (x + 1)) clipped to 0..255, uint8 (B, C, H, W)."""
        return to_pixels(x)

    def visits(self) -> Dataset[Batch]:
        """Return the training stream, mirrored if `flip` is set."""
        return Visits(self.training(), seed=self.seed, flip=self.flip)


Split = Literal["train", "heldout"]


_CACHE_BELOW = 2**30  # bytes


class RecordImages(ImageData):
    """Base of images in files; a subclass returns the `records` of both splits.

    Each process decodes and caches its own copy of images that fit into memory.
    """

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
        """Set the arguments described in `Shards`; a subclass must be able to call `first` before.

        Raises:
            ValueError: if `num_classes` is negative or `size` is below 1.
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
        """Return some training images at their stored size; the first one determines `data_shape`."""

    @abstractmethod
    def records(self, split: Split) -> RecordExamples:
        """Return the images of a split."""

    def training(self) -> Examples:
        """Return the training set.

        Raises:
            ValueError: for damaged files, a missing or wrong label, or an image of the wrong size.
        """
        return self._train

    def heldout(self) -> Examples:
        """Return the held-out set.

        Raises:
            ValueError: for damaged files, a missing or wrong label, or an image of the wrong size.
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
        """The splits opened so far."""
        return {}

    def _examples(self, split: Split) -> Examples:
        """Open a split, and decode it if it is to be cached."""
        records = self.records(split)
        self._records[split] = records
        if records.shape != self.data_shape:
            raise ValueError(
                f"the {split} images in {records.place} have shape {records.shape}; expected {self.data_shape} as in "
                "training (set `size` to crop and shrink all images to one size)"
            )
        cache = records.nbytes() < _CACHE_BELOW if self.cache is None else self.cache
        return records.decoded() if cache else records
