"""A kind of file, with its writer and its real reader (`Subject`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["LEFT_OUT", "Subject", "digest", "make_file"]

LEFT_OUT = "left out"  # in place of a member of a container that was counted as corrupt

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Subject:
    """A kind of file: `make` writes one into a folder and returns its path, `read` returns what the product reads."""

    make: Callable[[Path], Path]
    read: Reader
    checked: bool = False
    parts: bool = False

    def is_silent(self, whole: Any, found: Any) -> bool:
        """Return whether another value was accepted although checksums cover it."""
        if not self.parts:
            return self.checked and found != whole
        return len(found) != len(whole) or any(part not in [*whole, LEFT_OUT, [LEFT_OUT] * 2] for part in found)


def digest(x: Tensor) -> str:
    """Return a hash of type, shape and bytes."""
    content = (
        f"{x.dtype}{tuple(x.shape)}".encode() + x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )
    return hashlib.sha256(content).hexdigest()


def make_file(folder: Path, name: str, data: bytes) -> Path:
    """Write `data` and return its path."""
    (folder / name).write_bytes(data)
    return folder / name
