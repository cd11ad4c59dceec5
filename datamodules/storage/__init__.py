"""Files of datasets: tar shards and their indices, image codecs, downloads, latents and synthetic sets."""

from __future__ import annotations

from datamodules.storage.shard_writer import write_shards

__all__ = ["write_shards"]
