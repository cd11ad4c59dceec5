"""Snapshot file: safetensors with a header of metadata and a checksum.

The header's metadata holds, as strings: the format, images seen, sigma_rel (0 for raw weights), the recipe of the
network, the planned length of the run, the images at the update before, the names of the buffers, the version of the
code, and a SHA-256 checksum over all of these and over names, types, shapes and bytes of the tensors. Nothing is ever
unpickled.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_guide import __version__
from lightning_guide.utils.files import atomic

__all__ = ["Metadata", "checksum", "read", "read_checksum", "read_metadata", "write"]


FORMAT = "lightning-guide snapshot 1"


@dataclass(frozen=True)
class Metadata:
    """Metadata of a snapshot file.

    Attributes:
        images: number of training images seen, exactly.
        sigma_rel: relative width of the average; 0 means raw weights.
        recipe: how to build the network (`lightning_guide.utils.recipe`).
        planned_images: planned length of the run, if there was a plan.
        buffers: names of the tensors that are copied, not averaged.
        code_version: version of lightning-guide that wrote the file.
        since: number of images at the update of the weights before this one, if known.
    """

    images: int
    sigma_rel: float
    recipe: dict[str, Any]
    planned_images: int | None = None
    buffers: tuple[str, ...] = ()
    code_version: str = __version__
    since: int | None = None


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata, *, dtype: torch.dtype) -> None:
    """Write a snapshot file atomically: at every moment `path` is absent, the old file, or the whole new one.

    Averaged tensors are stored in `dtype`; the buffers named in `metadata` are stored bit for bit.

    Raises:
        OSError: if the file cannot be written.
    """
    stored = _storable(tensors, metadata.buffers, dtype)
    header = {
        "format": FORMAT,
        "images": str(metadata.images),
        "sigma_rel": repr(metadata.sigma_rel),
        "recipe": json.dumps(metadata.recipe, sort_keys=True),
        "planned_images": json.dumps(metadata.planned_images),
        "buffers": json.dumps(metadata.buffers),
        "code_version": metadata.code_version,
    }
    header |= {} if metadata.since is None else {"since": str(metadata.since)}
    header["checksum"] = checksum(stored, header)
    with atomic(path) as temporary:
        save_file(stored, temporary, metadata=header)


def read(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Tensors, in the types they were stored in, and metadata of a snapshot file, after verifying its checksum.

    Raises:
        ValueError: naming the file, if it is missing, cut off, altered, or not a snapshot.
    """
    _header(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata())  # of the file that is open, should a writer just replace it
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if header.pop("checksum", None) != checksum(tensors, header):
        raise ValueError(f"{path} was altered after it was written: its checksum does not match its contents")
    return tensors, _decode(path, header)


def read_metadata(path: Path) -> Metadata:
    """Metadata from the header alone; the size is checked, the checksum is not.

    Raises:
        ValueError: naming the file, if it is missing, cut off, or not a snapshot.
    """
    return _decode(path, _header(path))


def read_checksum(path: Path) -> str:
    """Return the checksum that was stored: equal for equal tensors and metadata, in whatever order they were written.

    Raises:
        ValueError: as `read_metadata`.
    """
    return _header(path)["checksum"]


def _storable(tensors: Mapping[str, Tensor], buffers: Collection[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors on the CPU in their storage types, contiguous, none sharing memory with another."""
    stored: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        # a wait for each tensor, when a snapshot is due: pinned memory for all weights would be held forever
        kept = tensor.detach().to("cpu", tensor.dtype if name in buffers else dtype).contiguous()
        stored[name] = kept.clone() if kept.untyped_storage().data_ptr() in memory else kept
        memory.add(stored[name].untyped_storage().data_ptr())
    return stored


def checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 over the header and over name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(path: Path) -> dict[str, str]:
    """The metadata strings of a file whose size agrees with its header."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= size - 8 else b""
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    try:
        contents = json.loads(text)
        header = contents.pop("__metadata__")
        expected = 8 + length + max((entry["data_offsets"][1] for entry in contents.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} is not a snapshot, or its header is cut off or damaged ({size} bytes)") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path} is not a snapshot that this version can read: expected {FORMAT!r}, found {found!r}")
    if size != expected:
        what = "is truncated" if size < expected else "has foreign bytes at its end"
        raise ValueError(f"{path} {what}: {size} bytes, expected {expected}")
    return header


def _decode(path: Path, header: Mapping[str, str]) -> Metadata:
    """The metadata strings as typed values."""
    try:
        return Metadata(
            images=int(header["images"]),
            sigma_rel=float(header["sigma_rel"]),
            recipe=json.loads(header["recipe"]),
            planned_images=json.loads(header["planned_images"]),
            buffers=tuple(json.loads(header["buffers"])),
            code_version=header["code_version"],
            since=int(header["since"]) if "since" in header else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has damaged metadata: {error!r}") from None
