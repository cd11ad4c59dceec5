"""Base of examples in encoded files, read at random from disk or decoded once into memory."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from datamodules.examples import Examples, TensorExamples
from datamodules.storage.image_codec import UndecodableError, decode_image, shrink

__all__ = ["RecordExamples"]


class RecordExamples(Examples):
    """Images in files of any kind, decoded at each visit.

    A corrupt image is found when it is first read: it is counted, reported in a warning, and from then on replaced by
    the next readable record with its own condition. The count is shared with loader workers.
    """

    def __init__(
        self, labels: Tensor, *, labeled: bool, size: int | None, decode: Callable[[bytes], Tensor] = decode_image
    ) -> None:
        """Set `labels` (n,); images are shrunk to `size` x `size` if given, else must all have one size.

        `decode` converts the content of a record; it raises ValueError for one that must not be left out. A subclass
        must be able to read records before it calls this.

        Raises:
            ValueError: if no image of the set is readable.
        """
        self.labels, self.labeled = labels, labeled
        self.size, self.decode = size, decode
        self.unreadable = torch.zeros(len(self.labels), dtype=torch.bool).share_memory_()
        self.shape: tuple[int, ...] | None = None if size is None else (3, size, size)
        self.dtype = torch.uint8
        if self.shape is None:
            first = self[0][0]
            self.shape, self.dtype = tuple(first.shape), first.dtype

    @property
    @abstractmethod
    def place(self) -> str:
        """Location of the records, for messages."""

    @abstractmethod
    def name(self, record: int) -> str:
        """Return the name of a record for messages."""

    @abstractmethod
    def content(self, record: int) -> bytes:
        """Return the encoded record."""

    def __len__(self) -> int:
        return len(self.labels)

    def condition(self, record: int) -> int | Tensor:
        """Return the label of a record, or its embedding (L, C)."""
        return int(self.labels.numpy()[record])  # 20 times faster than indexing by torch

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        count, unreadable = len(self), self.unreadable.numpy()
        reason = ""
        for record in ((index + ahead) % count for ahead in range(count)):
            if not unreadable[record]:
                try:
                    return self._read(record), self.condition(record)
                except UndecodableError as error:
                    unreadable[record] = True
                    reason = reason or f"; first: {self.name(record)} ({error})"
                    warnings.warn(
                        f"{self.name(record)} is corrupt ({error}); using the next readable record",
                        stacklevel=2,
                    )
        raise ValueError(f"none of the {len(self)} images in {self.place} can be decoded{reason}")

    @property
    def corrupt(self) -> list[str]:
        """Names of the records found corrupt so far."""
        return [self.name(int(record)) for record in self.unreadable.nonzero()]

    def nbytes(self) -> int:
        """Return the size of the decoded records in bytes."""
        assert self.shape is not None
        return len(self) * math.prod(self.shape) * self.dtype.itemsize

    def decoded(self) -> TensorExamples:
        """Return all images in one tensor. Corrupt ones are left out and reported together in one warning.

        Raises:
            ValueError: if an image has the wrong size, or all are corrupt.
        """
        assert self.shape is not None
        x = torch.empty(len(self), *self.shape, dtype=self.dtype)
        reasons = []
        for record in range(len(self)):
            try:
                x[record] = self._read(record)
            except UndecodableError as error:
                self.unreadable[record] = True
                reasons.append(f"{self.name(record)} ({error})")
        if len(reasons) == len(self):
            raise ValueError(f"none of the {len(self)} images in {self.place} can be decoded; first: {reasons[0]}")
        readable = ~self.unreadable
        if reasons:
            more = f" and {len(reasons) - 10} more" if len(reasons) > 10 else ""
            warnings.warn(
                f"{len(reasons)} of {len(self)} images are corrupt and left out: {'; '.join(reasons[:10])}{more}",
                stacklevel=2,
            )
            x = x[readable]
        if not self.labeled:
            return TensorExamples(x)
        conditions = [torch.as_tensor(self.condition(int(record))) for record in readable.nonzero()]
        return TensorExamples(x, torch.stack(conditions))

    def _read(self, record: int) -> Tensor:
        """Return one record (*shape), decoded and shrunk; raise UndecodableError if it is corrupt."""
        try:
            x = self.decode(self.content(record))
        except UndecodableError:
            raise
        except ValueError as error:
            raise ValueError(f"{self.name(record)}: {error}") from None
        if self.size is not None:
            try:
                return shrink(x, self.size)
            except ValueError as error:
                raise ValueError(f"{self.name(record)}: {error}") from None
        if self.shape is not None and tuple(x.shape) != self.shape:
            if len(x.shape) != 3 or len(self.shape) != 3:
                raise ValueError(f"{self.name(record)} has shape {tuple(x.shape)}; expected {self.shape}")
            raise ValueError(
                f"{self.name(record)} has {x.shape[1]}x{x.shape[2]} pixels; expected {self.shape[1]}x{self.shape[2]} "
                "like the first image (set `size` to crop and shrink all images to one size)"
            )
        if self.shape is not None and x.dtype != self.dtype:
            raise ValueError(f"{self.name(record)} has type {x.dtype}; expected {self.dtype} like the first one")
        return x
