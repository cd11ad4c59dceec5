"""Finite datasets in stored form (`Examples`), and their batches in order (`Slices`) or as a stream (`Visits`).

A loader requests a whole batch at once, by a `range` of elements or of stream positions, so that data in memory are
gathered in one indexing operation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.stream import epoch_order
from lightning_guide.data import Batch
from lightning_guide.seeds import mix

__all__ = ["Examples", "Slices", "TensorExamples", "Visits"]


class Examples(Dataset[tuple[Tensor, int | Tensor]], ABC):
    """A finite map-style dataset of (x, condition), x in stored form.

    The condition is a label, -1 for none, or an embedding (L, C), with the same L for all elements.

    Attributes:
        labeled: whether the elements carry labels or embeddings.
        in_memory: whether reading an element is free, so that loader workers would only add overhead.
    """

    labeled: bool
    in_memory: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of elements."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return element `index`: x (*data_shape) and its condition."""

    def take(self, indices: Tensor) -> Batch:
        """Return elements `indices` (B,) as one batch: x (B, *data_shape), condition (B,), (B, L, C) or None."""
        items = [self[index] for index in indices.tolist()]
        condition = torch.stack([torch.as_tensor(each) for _, each in items]) if self.labeled else None
        return Batch(torch.stack([x for x, _ in items]), condition)


class TensorExamples(Examples):
    """Examples in one tensor."""

    in_memory = True

    def __init__(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Store `x` (n, *data_shape) and `labels`: (n,) int64, embeddings (n, L, C), or None without conditions.

        Raises:
            ValueError: if there are no elements, or the number of labels differs.
        """
        if not len(x):
            raise ValueError("the dataset is empty; expected at least one element")
        if labels is not None and (labels.ndim not in (1, 3) or len(labels) != len(x)):
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({len(x)},), one for each element")
        self.x = x
        self.labels = labels
        self.labeled = labels is not None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        condition = -1 if self.labels is None else self.labels[index]
        return self.x[index], int(condition) if isinstance(condition, int) or condition.ndim == 0 else condition

    def take(self, indices: Tensor) -> Batch:
        """Return elements `indices` as one batch, by one gather."""
        return Batch(self.x[indices], None if self.labels is None else self.labels[indices])


class Slices(Dataset[Batch]):
    """Batches of examples in their own order: item `range(...)` is the batch of these elements."""

    def __init__(self, examples: Examples) -> None:
        """Take batches of `examples`."""
        self.examples = examples

    def __getitem__(self, indices: range) -> Batch:
        return self.examples.take(_tensor(indices))


class Visits(Dataset[Batch]):
    """Endless training stream over examples: item `range(...)` is the batch at these stream positions.

    A flip (mirroring the last axis, with probability 1/2) is drawn anew in every pass; like the order, it is a
    function of (seed, stream position).
    """

    def __init__(self, examples: Examples, *, seed: int, flip: bool = False) -> None:
        """Stream `examples` in the order of `seed`."""
        self.examples = examples
        self.seed = seed
        self.flip = flip
        self._pass: tuple[int, Tensor, Tensor] | None = None

    def __getitem__(self, positions: range) -> Batch:
        at, count = _tensor(positions), len(self.examples)
        visits = torch.div(at, count, rounding_mode="floor")
        indices, flips = torch.empty_like(at), torch.zeros_like(at, dtype=torch.bool)
        for visit in range(int(visits[0]), int(visits[-1]) + 1):
            here = visits == visit
            elements, mirrored = self._draws(visit)
            indices[here], flips[here] = elements[at[here] % count], mirrored[at[here] % count]
        batch = self.examples.take(indices)
        if not self.flip:
            return batch
        mask = flips.reshape(-1, *[1] * (batch.x.ndim - 1))
        return batch._replace(x=torch.where(mask, batch.x.flip(-1), batch.x))

    def _draws(self, visit: int) -> tuple[Tensor, Tensor]:
        """Return order and flips of one pass, both (n,); the latest pass is cached."""
        if self._pass is None or self._pass[0] != visit:
            count = len(self.examples)
            generator = torch.Generator().manual_seed(mix(self.seed, "flip", visit))
            flips = torch.rand(count, generator=generator) < 0.5
            self._pass = visit, epoch_order(self.seed, visit, count), flips
        return self._pass[1], self._pass[2]


def _tensor(indices: range) -> Tensor:
    """Convert a range to an int64 tensor."""
    return torch.arange(indices.start, indices.stop, indices.step)
