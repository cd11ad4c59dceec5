"""What predicted samples are written as: PNG files, one npz archive, WebDataset shards.

Every process writes the samples that it drew under names that no other process uses. All files appear at once, whole.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from webdataset import TarWriter

from callbacks.output import write_png
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.utils.files import atomic
from lightning_guide.utils.images import encode_sample

__all__ = ["NpzArchive", "PngFolder", "SampleFormat", "TarShards"]


class SampleFormat(ABC):
    """One way to write samples into `folder`, used by all processes side by side."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        """Process `rank` of `world`."""
        self.folder, self.rank, self.world = folder, rank, world

    @abstractmethod
    def write(self, samples: DrawnSamples) -> None:
        """Writes, or keeps, one batch of this process, on the CPU.

        Raises:
            ValueError: if such data cannot be written in this format.
        """

    def close(self) -> None:  # noqa: B027  # nothing by default
        """This process has no more samples."""

    def merge(self) -> None:  # noqa: B027  # nothing by default
        """Process 0 alone, after all have closed."""

    def discard(self) -> None:  # noqa: B027  # nothing by default
        """Something failed: leaves no half-written file behind."""


class PngFolder(SampleFormat):
    """`<thousand>/<index>.png`, six digits each: sample 12345 is `012000/012345.png`."""

    def write(self, samples: DrawnSamples) -> None:
        """One file for each picture.

        Raises:
            ValueError: if the samples are points.
        """
        if samples.x.ndim != 4:
            raise ValueError(
                f"format 'png' is for pictures (B, C, H, W), these samples have shape {tuple(samples.x.shape)}; "
                "expected formats 'npz' or 'shards' for them"
            )
        for index, picture in zip(samples.index.tolist(), samples.x, strict=True):
            write_png(self.folder / f"{index // 1000 * 1000:06d}" / f"{index:06d}.png", picture)


class NpzArchive(SampleFormat):
    """`samples.npz` with the arrays `x` (N, *), `index` (N,) and `condition` (N,), in order of index.

    Kept in memory until the end, then written by each process and merged by process 0.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        """As `SampleFormat`."""
        super().__init__(folder, rank, world)
        self._kept: list[DrawnSamples] = []

    def write(self, samples: DrawnSamples) -> None:
        """Keeps the samples: uint8 as they are, everything else as float32."""
        x = samples.x if samples.x.dtype == torch.uint8 else samples.x.float()
        self._kept.append(samples._replace(x=x))

    def close(self) -> None:
        """Writes the part of this process, even an empty one, since process 0 waits for as many as there are."""
        kept, self._kept = self._kept, []
        _save(self._part(self.rank), {name: _joined(kept, name) for name in DrawnSamples._fields} if kept else {})

    def merge(self) -> None:
        """Joins the parts and removes them.

        Raises:
            ValueError: if the part of a process is not there.
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

    def _part(self, rank: int) -> Path:
        return self.folder / f".samples-{rank:05d}.npz"


class TarShards(SampleFormat):
    """`samples-<rank>-<number>.tar`: records `<index>.png`, or `<index>.npy` of what is no picture, and `<index>.cls`.

    A sample without a label (-1) has no `.cls`. Shards of an earlier prediction that this one did not overwrite are
    removed at the end, so that the folder holds each sample once.
    """

    def __init__(self, folder: Path, rank: int, world: int, *, records: int) -> None:
        """At most `records` samples in a shard."""
        super().__init__(folder, rank, world)
        self.records, self.number, self._filled = records, 0, 0
        self._stream: BinaryIO | None = None
        self._tar: TarWriter | None = None

    def write(self, samples: DrawnSamples) -> None:
        """One record for each sample."""
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
        """Ends the last shard and removes those of this process that an earlier, longer prediction left."""
        self._end_shard()
        for path, rank, number in self._shards():
            if rank == self.rank and number >= self.number:
                path.unlink()

    def merge(self) -> None:
        """Removes the shards of processes that are no more."""
        for path, rank, _ in self._shards():
            if rank >= self.world:
                path.unlink()

    def discard(self) -> None:
        """Removes the shard under way."""
        if self._close():
            self._temporary.unlink()

    def _end_shard(self) -> None:
        """The shard under way is complete and appears."""
        if self._close():
            os.replace(self._temporary, self._path)
            self.number, self._filled = self.number + 1, 0

    def _close(self) -> bool:
        """Closes the file under way; whether there was one."""
        if self._stream is None or self._tar is None:
            return False
        self._tar.close()
        self._stream.close()
        self._stream = self._tar = None
        return True

    def _shards(self) -> list[tuple[Path, int, int]]:
        """(path, rank, number) of the shards in the folder."""
        named = [(path, re.fullmatch(r"samples-(\d{5})-(\d{6})\.tar", path.name)) for path in self.folder.iterdir()]
        return [(path, int(match[1]), int(match[2])) for path, match in named if match]

    @property
    def _path(self) -> Path:
        return self.folder / f"samples-{self.rank:05d}-{self.number:06d}.tar"

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(f".{self._path.name}.tmp")


def _joined(kept: list[DrawnSamples], name: str) -> np.ndarray:
    """One column of all batches, as an array."""
    return torch.cat([getattr(samples, name) for samples in kept]).numpy()


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz file at once."""
    with atomic(path, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
