"""Examples read from tar shards (`ShardExamples`)."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from datamodules.records import RecordExamples
from datamodules.storage.image_codec import decode_image
from datamodules.storage.tar_index import IMAGES, ShardIndex, index_shard
from lightning_guide.conditioning import mask_tokens, pad_tokens
from lightning_guide.utils.arrays import read_array

__all__ = ["ShardExamples", "token_shape"]


TOKENS, MASK = "tokens.npy", "mask.npy"


def token_shape(num_classes: int, token_channels: int, token_length: int) -> tuple[int, int] | None:
    """Return (L, C) of embeddings, None for labels or no condition.

    Raises:
        ValueError: if both labels and embeddings are requested, or L is below 1.
    """
    if num_classes and token_channels:
        raise ValueError(f"conditions are labels or embeddings; got {num_classes=} and {token_channels=}")
    if token_channels < 0 or token_length < 1:
        raise ValueError(f"expected token_channels >= 0 and token_length >= 1; got {token_channels} and {token_length}")
    return (token_length, token_channels) if token_channels else None


class ShardExamples(RecordExamples):
    """Images in shards, found by an index of their offsets, with labels or embeddings.

    An embedding is `KEY.tokens.npy`, floats (L, C), with an optional `KEY.mask.npy` (L,), 0 for padding.
    """

    def __init__(
        self,
        paths: list[Path],
        *,
        size: int | None,
        num_classes: int,
        token_shape: tuple[int, int] | None = None,
        extensions: Sequence[str] = IMAGES,
        decode: Callable[[bytes], Tensor] = decode_image,
    ) -> None:
        """Index the shards; image files have one of `extensions`. Other arguments as `RecordExamples`.

        With `token_shape` (L, C), conditions are embeddings padded to L tokens.

        Raises:
            ValueError: as `index_shard`; if no image of the set is readable.
        """
        beside = () if token_shape is None else (TOKENS, MASK)
        self.token_shape = token_shape
        self.shards = [
            index_shard(path, num_classes=num_classes, extensions=extensions, beside=beside) for path in paths
        ]
        self.beside = {name: torch.cat([shard.beside[name] for shard in self.shards]) for name in beside}
        self.offsets = torch.cat([shard.offsets for shard in self.shards])
        self.sizes = torch.cat([shard.sizes for shard in self.shards])
        self.ends = list(accumulate(len(shard) for shard in self.shards))
        labels = torch.cat([shard.labels for shard in self.shards])
        super().__init__(labels, labeled=num_classes > 0 or token_shape is not None, size=size, decode=decode)

    @property
    def place(self) -> str:
        """Names of the shards for messages."""
        more = f" and {len(self.shards) - 1} more shards" if len(self.shards) > 1 else ""
        return f"{self.shards[0].path}{more}"

    def name(self, record: int) -> str:
        """Return key and shard of a record for messages."""
        shard, within = self._locate(record)
        return f"record {shard.key(within)!r} of {shard.path}"

    def content(self, record: int) -> bytes:
        """Return the encoded record."""
        return self._bytes(record, int(self.offsets.numpy()[record]), int(self.sizes.numpy()[record]))

    def condition(self, record: int) -> int | Tensor:
        """Return the label of a record, or its padded float32 embedding (L, C).

        Raises:
            ValueError: if the embedding is missing, has another size, or is refused by `mask_tokens`.
        """
        if self.token_shape is None:
            return super().condition(record)
        length, channels = self.token_shape
        tokens, mask = self._array(record, TOKENS), self._array(record, MASK)
        if tokens is None or tokens.ndim != 2 or tokens.shape[1] != channels:
            found = "none" if tokens is None else f"one of shape {tuple(tokens.shape)}"
            raise ValueError(
                f"{self.name(record)} has no embedding (L, {channels}) in its {TOKENS}: found {found} "
                "(token_length and token_channels of the data)"
            )
        try:
            kept = mask_tokens(tokens.to(torch.float32), torch.ones(len(tokens)) if mask is None else mask)
            return pad_tokens(kept, length)
        except ValueError as error:
            raise ValueError(f"{self.name(record)}: {error}") from None

    def _array(self, record: int, name: str) -> Tensor | None:
        """Return the array `KEY.name` of a record, or None."""
        offset, size = self.beside[name][record].tolist()
        if size < 0:
            return None
        try:
            return torch.from_numpy(read_array(self._bytes(record, offset, size), "an embedding"))
        except ValueError as error:
            raise ValueError(f"the {name} of {self.name(record)} is not an array of real numbers: {error}") from None

    def _bytes(self, record: int, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset` of a record's shard."""
        file = os.open(self._locate(record)[0].path, os.O_RDONLY)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def _locate(self, record: int) -> tuple[ShardIndex, int]:
        """Return the shard of a record, and its number there."""
        shard = bisect_right(self.ends, record)
        return self.shards[shard], record - (self.ends[shard - 1] if shard else 0)
