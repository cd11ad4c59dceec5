"""File formats of predicted samples: PNG files, one npz archive, WebDataset shards.

Each process writes its own samples, under names that no other process uses. All files are written atomically.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from webdataset import TarWriter

from callbacks.output import write_png
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.utils.files import atomic
from lightning_guide.utils.images import encode_png, encode_sample

__all__ = ["NpzArchive", "PngFolder", "SampleFormat", "TarShards", "png_name"]


def png_name(index: int) -> str:
    """Name of the PNG file of a sample.

    Examples:
        >>> png_name(12345)
        '012000/012345.png'
    """
    return f"{index // 1000 * 1000:06d}/{index:06d}.png"


class SampleFormat(ABC):
    """Base of the formats: writes samples into `folder`, on all processes in parallel.

    Attributes:
        written: names in `folder` of the finished files of this process.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        """Configure a writer of process `rank` of `world`."""
        self.folder, self.rank, self.world = folder, rank, world
        self.written: list[str] = []

    @abstractmethod
    def names(self, indices: range) -> Iterator[str]:
        """Yield the names of all files that samples `indices` may be written to, by any process."""

    def check(self, samples: DrawnSamples) -> None:  # noqa: B027  # all data by default
        """Check that such samples can be written.

        Raises:
            ValueError: if they cannot.
        """

    @abstractmethod
    def write(self, samples: DrawnSamples) -> None:
        """Write, or keep, one batch of this process; tensors are on the CPU."""

    def close(self) -> None:  # noqa: B027  # nothing by default
        """Finish the files of this process, after its last batch."""

    def merge(self) -> list[str]:
        """Merge the files of all processes and return their names; on process 0 after every process has closed."""
        return []

    def discard(self) -> None:  # noqa: B027  # nothing by default
        """Remove incomplete files after an error."""


class PngFolder(SampleFormat):
    """PNG files `<thousand>/<index>.png`, six digits each: sample 12345 is `012000/012345.png`."""

    def names(self, indices: range) -> Iterator[str]:
        """Yield the name of each image."""
        return map(png_name, indices)

    def check(self, samples: DrawnSamples) -> None:
        """Check that samples are images.

        Raises:
            ValueError: if they have another shape than (B, 1 or 3, H, W), or are not uint8.
        """
        if samples.x.ndim != 4:
            raise ValueError(
                f"format 'png' is for images (B, C, H, W), these samples have shape {tuple(samples.x.shape)}; "
                "expected formats 'npz' or 'shards' for them"
            )
        encode_png(samples.x[0])

    def write(self, samples: DrawnSamples) -> None:
        """Write one file for each image."""
        for index, image in zip(samples.index.tolist(), samples.x, strict=True):
            write_png(self.folder / png_name(index), image)
            self.written.append(png_name(index))


class NpzArchive(SampleFormat):
    """Archive `samples.npz` with the arrays `x` (N, *), `index` (N,) and `condition` (N,), in order of index.

    Samples are kept in memory until the end, then written by each process and merged by process 0.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        """Configure a writer of process `rank` of `world`."""
        super().__init__(folder, rank, world)
        self._kept: list[DrawnSamples] = []

    def names(self, indices: range) -> Iterator[str]:
        """Yield the names of the archive and its parts."""
        yield "samples.npz"
        yield from (self._part(rank).name for rank in range(self.world))

    def write(self, samples: DrawnSamples) -> None:
        """Keep the samples: uint8 unchanged, all other types as float32."""
        x = samples.x if samples.x.dtype == torch.uint8 else samples.x.float()
        self._kept.append(samples._replace(x=x))

    def close(self) -> None:
        """Write the part of this process, even an empty one: process 0 expects one part from each process."""
        kept, self._kept = self._kept, []
        _save(self._part(self.rank), {name: _concatenate(kept, name) for name in DrawnSamples._fields} if kept else {})

    def merge(self) -> list[str]:
        """Merge the parts and remove them.

        Raises:
            ValueError: if the part of a process is missing.
        """
        parts = []
        for rank in range(self.world):
            if not self._part(rank).is_file():
                raise ValueError(
                    f"process {rank} of {self.world} wrote no {self._part(rank).name} into {self.folder}; "
                    "expected a folder that all processes share"
                )
            with np.load(self._part(rank)) as part:
                parts.append({name: part[name] for name in part.files})
        drawn = [part for part in parts if part]
        if drawn:
            order = np.argsort(np.concatenate([part["index"] for part in drawn]), kind="stable")
            names = ("x", "index", "condition")
            arrays = {name: np.concatenate([part[name] for part in drawn])[order] for name in names}
            _save(self.folder / "samples.npz", arrays)
        for rank in range(self.world):
            self._part(rank).unlink()
        return ["samples.npz"] if drawn else []

    def _part(self, rank: int) -> Path:
        return self.folder / f".samples-{rank:05d}.npz"


class TarShards(SampleFormat):
    """WebDataset shards `samples-<rank>-<number>.tar` with `<index>.png` (`.npy` if not an image) and `<index>.cls`.

    A sample without a label (-1) has no `.cls`.
    """

    def __init__(self, folder: Path, rank: int, world: int, *, records: int) -> None:
        """Configure a writer of process `rank` of `world`, with at most `records` samples in a shard."""
        super().__init__(folder, rank, world)
        self.records, self.number, self._filled = records, 0, 0
        self._stream: BinaryIO | None = None
        self._tar: TarWriter | None = None

    def names(self, indices: range) -> Iterator[str]:
        """Yield as many names for each process as its share of the samples can fill."""
        shards = -(-len(indices) // self.records)
        yield from (self._name(rank, number) for rank in range(self.world) for number in range(shards))

    def write(self, samples: DrawnSamples) -> None:
        """Write one record for each sample."""
        for index, condition, x in zip(samples.index.tolist(), samples.condition.tolist(), samples.x, strict=True):
            extension, data = encode_sample(x)
            record: dict[str, str | bytes] = {"__key__": f"{index:06d}", extension: data}
            if condition >= 0:
                record["cls"] = str(condition)
            if self._tar is None:
                self._stream = self._temporary.open("wb")
                self._tar = TarWriter(self._stream, mtime=0)  # the same bytes each time
            self._tar.write(record)
            self._filled += 1
            if self._filled == self.records:
                self._end_shard()

    def close(self) -> None:
        """Complete the last shard."""
        self._end_shard()

    def discard(self) -> None:
        """Remove the unfinished shard."""
        if self._close():
            self._temporary.unlink()

    def _end_shard(self) -> None:
        """Complete the current shard and give it its final name."""
        if self._close():
            os.replace(self._temporary, self._path)
            self.written.append(self._path.name)
            self.number, self._filled = self.number + 1, 0

    def _close(self) -> bool:
        """Close the current file; return whether one was open."""
        if self._stream is None or self._tar is None:
            return False
        self._tar.close()
        self._stream.close()
        self._stream = self._tar = None
        return True

    @staticmethod
    def _name(rank: int, number: int) -> str:
        return f"samples-{rank:05d}-{number:06d}.tar"

    @property
    def _path(self) -> Path:
        return self.folder / self._name(self.rank, self.number)

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(f".{self._path.name}.tmp")


def _concatenate(kept: list[DrawnSamples], name: str) -> np.ndarray:
    """Return one column of all batches as an array."""
    return torch.cat([getattr(samples, name) for samples in kept]).numpy()


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file atomically."""
    with atomic(path, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
