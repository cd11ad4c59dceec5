"""Sets of samples in files, read in parts of bounded size and in a stable order (`SampleSet`)."""

from __future__ import annotations

import math
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from torch import Tensor

from datamodules.shards import shard_paths
from datamodules.storage.image_codec import SUFFIXES, UndecodableError, decode_image, decode_sample
from datamodules.storage.image_files import ImageFiles, image_files, is_image
from datamodules.storage.resizing import Resizing
from lightning_guide.utils.arrays import as_numbers, reason_for_refusal
from lightning_guide.utils.terminal import counted

__all__ = ["SampleSet", "is_archive"]

PART_BYTES = 2**26  # of decoded samples held at once
_OVERVIEW, _ARCHIVE = "samples.png", "samples.npz"  # of SampleWriter


class SampleSet:
    """Samples of a folder, a zip archive, tar shards or an npz archive, as `predict` and other programs write them.

    Sources: a folder of images, or of one `samples.npz`, or of tar shards; a zip or tar of images; shards as
    "samples-*.tar"; an npz archive with `x` (N, *) of `predict`, or `arr_0` (N, H, W, 3) of ADM's evaluator. The order
    is that of the sorted names, or of the array. Gray PNG files keep one channel.

    Attributes:
        place: where they lie.
        resizing: how images are resized.
        keys: names for pairing with another set, in order: of the files without extension, or the stored index; None
            if the samples have none.
        shape: of one sample, resized.
    """

    def __init__(self, place: str, resizing: Resizing | None = None) -> None:
        """Find the samples and decode the first.

        Raises:
            ValueError: if the place does not exist, is damaged, or holds no samples.
        """
        self.place, self.resizing = place, resizing or Resizing()
        self._source = _open(place)
        self.keys = self._source.keys()
        first = self._decode(0)
        self.shape, self._channels = tuple(first.shape), first.shape[:1]
        self.step = max(1, PART_BYTES // max(1, math.prod(self.shape) * first.element_size()))

    def __len__(self) -> int:
        return len(self._source)

    @property
    def labels(self) -> Tensor | None:
        """Labels (N,), int64, -1 for none: `condition` of npz, KEY.cls in tar; None if the samples have none.

        Raises:
            ValueError: if a label is no number.
        """
        try:
            return self._source.labels()
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.place} holds labels that are no numbers: {error}") from None

    def parts(self) -> list[range]:
        """Return the numbers of samples in parts of at most 64 MiB each."""
        return [range(begin, min(begin + self.step, len(self))) for begin in range(0, len(self), self.step)]

    def read(self, rows: range) -> Tensor:
        """Return samples `rows` (n, *shape).

        Raises:
            ValueError: naming all that are damaged, or the first that has another shape.
        """
        found, damaged = [], []
        for row in rows:
            try:
                x = self._decode(row)
            except UndecodableError as error:
                damaged.append(f"{self._source.name(row)} ({error})")
                continue
            if x.ndim == 3 and x.shape[0] in (1, 3) and self.shape[:1] == (3,):
                x = x.expand(3, -1, -1)  # one gray image among colored ones
            if tuple(x.shape) != self.shape:
                raise ValueError(
                    f"{self._source.name(row)} in {self.place} has shape {tuple(x.shape)}, the first sample "
                    f"{self.shape}; expected one shape (--size resizes images)"
                )
            found.append(x)
        if damaged:
            more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
            raise ValueError(
                f"{self.place} holds {counted(len(damaged), 'damaged file')}: {'; '.join(damaged[:10])}{more}"
            )
        return torch.stack(found)

    def _decode(self, row: int) -> Tensor:
        return self.resizing(self._source[row])


class _Source(ABC):
    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, row: int) -> Tensor: ...

    @abstractmethod
    def name(self, row: int) -> str: ...

    @abstractmethod
    def keys(self) -> list[str] | None: ...

    @abstractmethod
    def labels(self) -> Tensor | None: ...


class _Files(_Source):
    """Files of a folder or of archives."""

    def __init__(self, files: Sequence[tuple[ImageFiles, str]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        files, name = self.files[row]
        data = files.read(name)
        return decode_sample(data) if name.lower().endswith((".png", ".npy")) else decode_image(data)

    def name(self, row: int) -> str:
        return self.files[row][1]

    def keys(self) -> list[str] | None:
        """Return names without extension; of files named by numbers in folders, as those of `predict`, the numbers."""
        paths = [PurePosixPath(name) for _, name in self.files]
        stems = [path.stem for path in paths]
        if all(stem.isdecimal() for stem in stems):
            stems = [str(int(stem)) for stem in stems]
        keys = stems if len(set(stems)) == len(stems) else [path.with_suffix("").as_posix() for path in paths]
        return keys if len(set(keys)) == len(keys) else None

    def labels(self) -> Tensor | None:
        """Return the numbers in the files KEY.cls, if there is one."""
        known = {id(files): set(files.names()) for files, _ in self.files}
        found = torch.full((len(self.files),), -1)
        for row, (files, name) in enumerate(self.files):
            label = str(PurePosixPath(name).with_suffix(".cls"))
            if label in known[id(files)]:
                found[row] = int(files.read(label))
        return found if bool((found >= 0).any()) else None


class _Archive(_Source):
    """One array of an npz archive, read row by row: compressed ones may be larger than the memory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            with np.load(place, allow_pickle=False) as archive:
                self.member = next((name for name in ("x", "arr_0") if name in archive.files), "")
                held = ", ".join(archive.files)
                self._index = archive["index"] if "index" in archive.files else None
                self._labels = archive["condition"] if "condition" in archive.files else None
            self._file: IO[bytes] = zipfile.ZipFile(place).open(f"{self.member}.npy") if self.member else None  # type: ignore[assignment]
            if self.member:
                version = np.lib.format.read_magic(self._file)
                header = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
                self.shape, columns, self.dtype = getattr(np.lib.format, header)(self._file)
                self._begin = self._file.tell()
        except Exception as error:  # zipfile and numpy raise many types for damaged files
            raise ValueError(f"{place} cannot be read as samples: {reason_for_refusal(error)}") from None
        if not self.member or len(self.shape) < 2 or not self.shape[0] or columns or self.dtype.kind not in "uif":
            found = f"{self.member} {self.dtype} {self.shape}" if self.member else held
            raise ValueError(
                f"{place} holds {found}; expected x (N, *) as predict writes it, or arr_0 (N, H, W, 3) uint8"
            )

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, row: int) -> Tensor:
        stride = math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            self._file.seek(self._begin + row * stride)
            data = self._file.read(stride)
        except Exception as error:  # a damaged stream raises many types
            raise UndecodableError(f"{type(error).__name__}: {error}") from None
        if len(data) < stride:
            raise UndecodableError("the archive ends before it")
        x = torch.from_numpy(as_numbers(np.frombuffer(data, self.dtype).reshape(self.shape[1:])).copy())
        return x.movedim(-1, 0) if self.member == "arr_0" and x.ndim == 3 else x

    def name(self, row: int) -> str:
        return f"{self.member}[{row}]"

    def keys(self) -> list[str] | None:
        """Return the stored index, if there is one for each sample."""
        index = self._index
        return None if index is None or index.shape != (len(self),) else [str(each) for each in index.tolist()]

    def labels(self) -> Tensor | None:
        """Return `condition`, if it holds a label for each sample rather than an embedding."""
        found = self._labels
        if found is None or found.shape != (len(self),):
            return None
        return torch.from_numpy(as_numbers(found).astype(np.int64))


def is_archive(place: str | Path, *members: str) -> bool:
    """Return whether `place` is an npz archive that holds all arrays `members`."""
    if not Path(place).is_file() or not zipfile.is_zipfile(place):
        return False
    try:
        names = zipfile.ZipFile(place).namelist()
    except Exception:  # a damaged directory; whoever reads the archive says so
        return Path(place).suffix == ".npz"
    return bool(names) and all(f"{name}.npy" in names for name in members) and all(n.endswith(".npy") for n in names)


def _open(place: str) -> _Source:
    """Find the samples of `place`."""
    path = Path(place).expanduser()
    if not path.exists() and re.search(r"[*?{\[]", place):
        return _shards(shard_paths(place))
    if path.suffix == ".npz" or is_archive(path):
        return _Archive(path)
    files = image_files(path)
    names = files.names()
    overview = {_OVERVIEW} if "samples.json" in names or _ARCHIVE in names else set()
    images = [name for name in names if is_image(name) and name not in overview]
    if images:
        return _Files([(files, name) for name in images])
    if path.is_dir() and _ARCHIVE in names:
        return _Archive(path / _ARCHIVE)
    tars = [path / name for name in names if name.endswith(".tar")] if path.is_dir() else []
    arrays = [path] if any(name.endswith(".npy") for name in names) else []
    if not tars and not arrays:
        raise ValueError(
            f"{place} holds no samples; expected images ({', '.join(SUFFIXES)}), {_ARCHIVE}, or shards *.tar"
        )
    return _shards(tars or arrays)


def _shards(paths: Sequence[Path]) -> _Source:
    """Return all images and arrays of tar files."""
    opened = [image_files(path) for path in paths]
    ends = (*SUFFIXES, ".npy")
    found = [(files, name) for files in opened for name in files.names() if name.lower().endswith(ends)]
    if not found:
        raise ValueError(f"{paths[0]} holds no samples; expected KEY.png, KEY.jpg or KEY.npy in it")
    return _Files(found)
