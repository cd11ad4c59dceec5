"""Pickles of numbers, dicts and numpy arrays, read without numpy's own unpickling: arrays are made of their bytes."""

from __future__ import annotations

import collections
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from lightning_guide.foreign.inert_pickle import Function, Items, read_inert

__all__ = ["read_arrays"]


class _Kind:
    """The type of an array's numbers: only plain booleans, integers and floats."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf]\d+", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, expected numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order.replace("=", "") + self.code)


class _Array:
    """An array whose bytes come as its state."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, data = state
        self.value = _from_bytes(data, kind, shape, "F" if columns_first else "C")


def _from_bytes(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(kind, _Kind) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array of something else than numbers")
    return np.frombuffer(bytes(data), kind.numpy()).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, data: Any) -> Any:
    return _from_bytes(data, kind, (), "C").item()


def _encoded(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something else than the bytes of an array")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("dnnlib.util", "EasyDict"): Items,
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): Function(_encoded),
}
for _package in ("numpy.core", "numpy._core"):  # before and after numpy 2
    _KNOWN[f"{_package}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_package}.multiarray", "scalar"] = Function(_scalar)
    _KNOWN[f"{_package}.numeric", "_frombuffer"] = Function(_from_bytes)


def read_arrays(path: str | Path, *, kind: str) -> Any:
    """The content of a pickle: a dict of numbers, arrays of numbers, and dicts of these.

    Raises:
        ValueError: naming the file and what it asks for beyond that, or if it is cut off or no pickle; `kind` says what
            was expected.
        OSError: if it cannot be opened.
    """
    return _plain(read_inert(path, _KNOWN, kind=kind), depth=2)


def _plain(value: Any, *, depth: int) -> Any:
    """Stand-ins for arrays replaced by the arrays, in dicts within dicts."""
    if isinstance(value, dict) and depth:  # a file may hold a dict that contains itself
        return {key: _plain(each, depth=depth - 1) for key, each in value.items()}
    return value.value if isinstance(value, _Array) else value
