"""Encoded records as examples: read at random from disk, or decoded once into memory."""

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
    """Pictures in files of any kind, decoded at each visit.

    A corrupt picture is found when it is first read: it is counted, reported in a warning, and from then on the
    next sound record, with its own condition, stands in its place. The count is shared with loader workers.
    """

    def __init__(
        self, labels: Tensor, *, labeled: bool, size: int | None, decode: Callable[[bytes], Tensor] = decode_image
    ) -> None:
        """Records with `labels` (n,); pictures are shrunk to `size` x `size` if given, else must all be of one size.

        The content of a record is read by `decode`. A subclass calls this when it can read.

        Raises:
            ValueError: if not one picture of the set is readable.
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
        """Where the records are, as shown to the user."""

    @abstractmethod
    def name(self, record: int) -> str:
        """A record, as shown to the user."""

    @abstractmethod
    def content(self, record: int) -> bytes:
        """The encoded record."""

    def __len__(self) -> int:
        return len(self.labels)

    def condition(self, record: int) -> int | Tensor:
        """The label of a record, or its embedding (L, C)."""
        return int(self.labels.numpy()[record])  # twenty times as fast as by torch

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        count, unreadable = len(self), self.unreadable.numpy()
        for record in ((index + ahead) % count for ahead in range(count)):
            if not unreadable[record]:
                try:
                    return self._read(record), self.condition(record)
                except UndecodableError as error:
                    unreadable[record] = True
                    warnings.warn(
                        f"{self.name(record)} is corrupt ({error}); the next sound record is read in its place",
                        stacklevel=2,
                    )
        raise ValueError(f"none of the {len(self)} pictures in {self.place} can be decoded")

    @property
    def corrupt(self) -> list[str]:
        """Names of the records found corrupt so far."""
        return [self.name(int(record)) for record in self.unreadable.nonzero()]

    def nbytes(self) -> int:
        """Memory that the decoded records take."""
        assert self.shape is not None
        return len(self) * math.prod(self.shape) * self.dtype.itemsize

    def decoded(self) -> TensorExamples:
        """All pictures in one tensor. Corrupt ones are left out, and reported together in one warning.

        Raises:
            ValueError: if a picture has the wrong size, or all are corrupt.
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
            raise ValueError(f"none of the {len(self)} pictures in {self.place} can be decoded; first: {reasons[0]}")
        sound = ~self.unreadable
        if reasons:
            more = f" and {len(reasons) - 10} more" if len(reasons) > 10 else ""
            warnings.warn(
                f"{len(reasons)} of {len(self)} pictures are corrupt and left out: {'; '.join(reasons[:10])}{more}",
                stacklevel=2,
            )
            x = x[sound]
        if not self.labeled:
            return TensorExamples(x)
        conditions = [torch.as_tensor(self.condition(int(record))) for record in sound.nonzero()]
        return TensorExamples(x, torch.stack(conditions))

    def _read(self, record: int) -> Tensor:
        """The content of one record (*shape), decoded and shrunk.

        Raises:
            UndecodableError: if it is corrupt.
            ValueError: if it has the wrong size.
        """
        x = self.decode(self.content(record))
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
                "like the first picture (set `size` to crop and shrink all pictures to one size)"
            )
        return x
