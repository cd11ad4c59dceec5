"""storage."""

from __future__ import annotations

from datamodules.storage.shard_writer import write_shards

__all__ = ["write_shards"]
