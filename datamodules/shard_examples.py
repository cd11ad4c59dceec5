"""The records of a set of tar shards as examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.pictures import decode_picture
from datamodules.records import RecordExamples
from datamodules.tar_index import PICTURES, ShardIndex, index_shard

__all__ = ["ShardExamples"]


class ShardExamples(RecordExamples):
    """Pictures in shards, found by an index of their offsets."""

    def __init__(
        self,
        paths: list[Path],
        *,
        size: int | None,
        num_classes: int,
        extensions: Sequence[str] = PICTURES,
        decode: Callable[[bytes], Tensor] = decode_picture,
    ) -> None:
        """Indexes the shards; the file of a record has one of `extensions`. Otherwise as `RecordExamples`.

        Raises:
            ValueError: what `index_shard` raises; if not one picture of the set is readable.
        """
        self.shards = [index_shard(path, num_classes=num_classes, extensions=extensions) for path in paths]
        self.offsets = torch.cat([shard.offsets for shard in self.shards])
        self.sizes = torch.cat([shard.sizes for shard in self.shards])
        self.ends = torch.tensor([len(shard) for shard in self.shards]).cumsum(0)
        labels = torch.cat([shard.labels for shard in self.shards])
        super().__init__(labels, labelled=num_classes > 0, size=size, decode=decode)

    @property
    def place(self) -> str:
        """The shards, as shown to the user."""
        more = f" and {len(self.shards) - 1} more shards" if len(self.shards) > 1 else ""
        return f"{self.shards[0].path}{more}"

    def name(self, record: int) -> str:
        """Key and shard of a record, as shown to the user."""
        shard, within = self._locate(record)
        return f"record {shard.key(within)!r} of {shard.path}"

    def content(self, record: int) -> bytes:
        """The encoded record."""
        shard, _ = self._locate(record)
        with shard.path.open("rb", buffering=0) as file:
            file.seek(int(self.offsets[record]))
            return file.read(int(self.sizes[record]))

    def _locate(self, record: int) -> tuple[ShardIndex, int]:
        """The shard of a record, and its number there."""
        shard = int(torch.searchsorted(self.ends, record, right=True))
        return self.shards[shard], record - (int(self.ends[shard - 1]) if shard else 0)
