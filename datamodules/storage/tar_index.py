"""Index of the records of a tar shard, for random access.

Records are named as in the `webdataset` library. That library streams shards, and a position in a stream is state; with
an index the position of a run is arithmetic on the images seen, so that resuming is exact for any number of processes
and workers.
"""

from __future__ import annotations

import mmap
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import torch
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from lightning_guide.utils.errors import did_you_mean

__all__ = ["IMAGES", "SAMPLES", "ShardIndex", "index_shard", "is_hidden", "tar_members"]


IMAGES = ("jpg", "jpeg", "png", "webp")
SAMPLES = ("png", "npy")  # extensions of generated data

_BLOCK = 512
_OCTAL = re.compile(rb"[0-7]+")
_SYSTEM_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini")
_PAX_NAMES = re.compile(rb"\d (path|size|hdrcharset|GNU\.)")  # records that change name or size of the next file

Place = tuple[int, int]  # offset and size of a file's content, in bytes


@dataclass(frozen=True)
class ShardIndex:
    """Records of one shard: `offsets` and `sizes` of the images in bytes, `labels` (-1: not read), each (n,).

    `beside` maps further extensions to offsets and sizes (n, 2), size -1 for records without such a file.
    """

    path: Path
    offsets: Tensor
    sizes: Tensor
    labels: Tensor
    beside: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, record: int) -> str:
        """Return the key of one record."""
        return self.keys()[record]

    def keys(self) -> list[str]:
        """Return the keys of all records; this reads the shard again, to avoid storing millions of keys."""
        with self.path.open("rb") as file, _mapped(file, self.path) as view:
            names = {offset: name for name, offset, _ in _members(view, self.path)}
        return [str(base_plus_ext(names[offset])[0]) for offset in self.offsets.tolist()]


def index_shard(
    path: Path, *, num_classes: int, extensions: Sequence[str] = IMAGES, beside: Sequence[str] = ()
) -> ShardIndex:
    """Find the records of a shard: `KEY.jpg` (or another of `extensions`) and `KEY.cls`, the class as decimal text.

    Hidden files and names with a leading `__` are skipped, further files of a record ignored unless `beside` names
    their extensions. With `num_classes` 0 labels are not read.

    Raises:
        ValueError: naming shard and record, if the shard is missing, not a complete tar, or empty; if a record has no
            image, more than one, or no label; if a label is not an integer in 0..num_classes-1.
    """
    if not path.is_file():
        raise ValueError(f"the shard {path} does not exist{did_you_mean(path)}; expected a tar file")
    with path.open("rb") as file, _mapped(file, path) as view:
        records = _records(view, path, extensions)
        places = [_image_place(record, key, path, extensions) for key, record in records.items()]
        labels = [_label(view, record, key, path, num_classes) for key, record in records.items()]
        further = {name: [record.get(name, (-1, -1)) for record in records.values()] for name in beside}
    offsets, sizes = torch.tensor(places, dtype=torch.int64).T.contiguous()
    return ShardIndex(
        path,
        offsets,
        sizes,
        torch.tensor(labels, dtype=torch.int64),
        {name: torch.tensor(found, dtype=torch.int64) for name, found in further.items()},
    )


def _records(view: mmap.mmap, path: Path, extensions: Sequence[str]) -> dict[str, dict[str, Place]]:
    """Return files by key and extension."""
    records: dict[str, dict[str, Place]] = {}
    for name, offset, size in _members(view, path):
        key, extension = base_plus_ext(name)
        if key is None or key.rsplit("/", 1)[-1].startswith("__") or is_hidden(name):
            continue
        record = records.setdefault(key, {})
        if extension.lower() in record:
            raise ValueError(f"{path} holds {name!r} twice; expected each file of a record once")
        record[extension.lower()] = offset, size
    if not records:
        first, *others = extensions
        raise ValueError(f"{path} holds no records; expected files KEY.{first} (or {', '.join(others)}) and KEY.cls")
    return records


def _image_place(record: dict[str, Place], key: str, path: Path, extensions: Sequence[str]) -> Place:
    """Return the place of the only image of a record."""
    places = [record[extension] for extension in extensions if extension in record]
    if len(places) != 1:
        raise ValueError(
            f"record {key!r} of {path} holds {len(places)} images; expected exactly one of "
            f"{', '.join(extensions)} beside cls, found {', '.join(sorted(record))}"
        )
    return places[0]


def _label(view: mmap.mmap, record: dict[str, Place], key: str, path: Path, num_classes: int) -> int:
    """Return the checked label of a record, -1 without classes."""
    if not num_classes:
        return -1
    if "cls" not in record:
        raise ValueError(
            f"record {key!r} of {path} has no label; expected {key}.cls, found {', '.join(sorted(record))} "
            "(set num_classes to 0 to train without labels)"
        )
    offset, size = record["cls"]
    text = view[offset : offset + size].strip()
    if not text.isdigit() or size > 20:
        raise ValueError(
            f"record {key!r} of {path} has the label {text[:20]!r}; expected 0 to {num_classes - 1} as text"
        )
    if int(text) >= num_classes:
        raise ValueError(
            f"record {key!r} of {path} has the label {int(text)}; expected 0 to {num_classes - 1} (num_classes is "
            f"{num_classes})"
        )
    return int(text)


@contextmanager
def _mapped(file: BinaryIO, path: Path) -> Iterator[mmap.mmap]:
    """Map a file into memory."""
    if not os.fstat(file.fileno()).st_size:
        raise ValueError(f"{path} is empty; expected a tar file")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


def _members(view: mmap.mmap, path: Path) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of all regular files of a complete tar.

    A tar of plain headers, the usual output of shard writers, is parsed directly, in a fifth of the time of `tarfile`;
    `tarfile` reads all others.
    """
    members, end = _plain_members(view) or _any_members(path)
    if end + _BLOCK > len(view) or view[end : end + _BLOCK].count(0) != _BLOCK:
        raise ValueError(
            f"{path} is truncated or damaged: after {len(members)} files there is neither another one nor the "
            f"end-of-archive mark at byte {end} of {len(view)}; copy the shard again"
        )
    for at in range(end, len(view), 2**20):
        rest = view[at : at + 2**20]
        if rest.count(0) != len(rest):
            raise ValueError(
                f"{path} holds data after its end-of-archive mark at byte {end} of {len(view)}; expected one undamaged "
                "tar, not several joined"
            )
    return members


def _plain_members(view: mmap.mmap) -> tuple[list[tuple[str, int, int]], int] | None:
    """Return members and the position behind the last one; None if a header is not plain and valid."""
    members: list[tuple[str, int, int]] = []
    at = 0
    while True:
        header = view[at : at + _BLOCK]
        if len(header) < _BLOCK or not header[0]:
            return members, at
        kind = header[156:157]
        if header[257:263] != b"ustar\0" or kind not in b"0\0x" or header[345]:
            return None
        try:
            octal = header[124:136].rstrip(b" \0"), header[148:156].strip(b" \0")
            if not all(map(_OCTAL.fullmatch, octal)):  # int() would accept a sign
                return None
            size, checksum = (int(text, 8) for text in octal)
            if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
                return None
            name = header[:100].split(b"\0", 1)[0].decode()
        except ValueError:
            return None
        if at + _BLOCK + size > len(view):
            return members, at
        if kind != b"x":
            members.append((name, at + _BLOCK, size))
        elif _PAX_NAMES.search(view[at + _BLOCK : at + _BLOCK + size]):  # others are time stamps or the like
            return None
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _any_members(path: Path) -> tuple[list[tuple[str, int, int]], int]:
    """Return the same by the standard library, for long names, directories (left out), and all dialects."""
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.issym() or member.islnk() or member.issparse():
                    if not is_hidden(member.name):
                        raise tarfile.TarError(f"{member.name!r} is a link or sparse; expected plain files")
                elif member.isfile():
                    members.append((member.name, member.offset_data, member.size))
            return members, tar.offset
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged headers raise many types
        raise ValueError(
            f"{path} cannot be read as a tar: {error}; expected a complete, uncompressed tar file"
        ) from None


def tar_members(path: Path) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of all files of a complete, uncompressed tar.

    Raises:
        ValueError: if it is damaged, truncated or compressed, or holds links.
    """
    with path.open("rb") as file, _mapped(file, path) as view:
        return _members(view, path)


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden, lies in a hidden folder, or was added by macOS or Windows.

    Examples:
        >>> [is_hidden(name) for name in ("a/1.png", "./1.png", "a/._1.png", "a/Thumbs.db")]
        [False, False, True, True]
    """
    parts = PurePosixPath(name).parts
    return any(part in _SYSTEM_FILES or (part.startswith(".") and part != "..") for part in parts)
