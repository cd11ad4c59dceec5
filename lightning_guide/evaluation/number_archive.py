"""Archives of numbers (npz), written at once by any number of processes, read without running anything in them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

__all__ = ["read_numbers", "write_numbers"]


def write_numbers(path: str | Path, numbers: Mapping[str, Any]) -> Path:
    """Writes arrays, numbers and words by name to `path`, at once; makes the folder. Each writer has its own temporary.

    Raises:
        OSError: if the disk refuses.
    """
    content = io.BytesIO()
    arrays: Any = {key: np.asarray(value) for key, value in numbers.items()}
    np.savez(content, **arrays)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_numbers(path: str | Path, *, what: str) -> dict[str, Any]:
    """Name -> array of an archive of `what`.

    Raises:
        ValueError: naming the file, if it is damaged or no such archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # whatever zip and numpy have to say of a damaged file
        raise ValueError(f"{path} cannot be read as {what}: {type(error).__name__}: {error}") from None
