"""Reading of npy files, without unpickling and with one kind of error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["as_numbers", "read_array", "reason_for_refusal"]

Array = np.ndarray[Any, Any]

_NPY = b"\x93NUMPY"


def read_array(source: str | Path | bytes, what: str) -> Array:
    """Return the array of an npy file, or of its content, as contiguous numbers of the machine's byte order.

    `what` describes the file in errors. Types of more than 8 bytes, which torch lacks, become float64.

    Raises:
        ValueError: if it is damaged, not npy, or does not hold an array of real numbers of at least one dimension.
    """
    name = "" if isinstance(source, bytes) else f"{source}: "
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data.startswith(_NPY):
            raise ValueError("it does not begin like an npy file")
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{name}cannot be read as {what}: {error.strerror or error}") from None
    except Exception as error:  # numpy raises many types for damaged files
        raise ValueError(f"{name}cannot be read as {what}: {reason_for_refusal(error)}") from None
    try:
        return as_numbers(array)
    except ValueError as error:
        raise ValueError(f"{name}cannot be read as {what}: {error}") from None


def as_numbers(array: Array) -> Array:
    """Return a contiguous array in a type that torch has.

    Raises:
        ValueError: for anything but real numbers of at least one dimension.
    """
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise ValueError(f"it holds an array of shape {array.shape} and type {array.dtype}, expected real numbers")
    dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    return np.ascontiguousarray(array, dtype=dtype)


def reason_for_refusal(error: Exception) -> str:
    """Return in one line why numpy refused a file."""
    text = " ".join(str(error).split())
    if "allow_pickle" in text or "pickled" in text:
        text = "it holds Python objects, which are not read"
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
