"""Safe reading of untrusted pickles, without running any code of the file.

A pickle names the functions and classes to be called. The reader accepts only the few names that a kind of file needs
and maps each to an inert placeholder; any other name, and any reference to objects outside the file, is refused. Numpy
arrays are built from their bytes, without numpy's own unpickling.
"""

from __future__ import annotations

import collections
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

__all__ = ["Function", "Items", "array_names", "read_arrays", "read_inert", "unwrap_arrays"]


class Items(dict[str, Any]):
    """Placeholder for a dict with attributes, whose state is read as items."""

    def __setstate__(self, state: Any) -> None:
        self.update(state)


class Function:
    """Placeholder for an unpickled callable, which may be called but not altered."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("it alters a function")


class _Reader(pickle._Unpickler):
    """Unpickler that resolves names to placeholders and to nothing else.

    Written in Python: that in C fills all memory for the number of an object that one flipped bit makes large.
    """

    def __init__(self, file: IO[bytes], known: Mapping[tuple[str, str], Any], kind: str) -> None:
        super().__init__(file)
        self.known, self.kind = known, kind

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no {self.kind} needs; nothing in the file was run"
            )
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_inert(path: str | Path, known: Mapping[tuple[str, str], Any], *, kind: str) -> Any:
    """Return the content of a pickle that refers only to the `known` names: (module, name) -> placeholder.

    `kind` names the expected kind of file in errors.

    Raises:
        ValueError: naming the file and any other name it refers to, or if it is truncated or not a pickle.
        OSError: if it cannot be opened.
    """
    try:
        with Path(path).open("rb") as file:
            return _Reader(file, known, kind).load()
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything, but only in placeholders
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: {error}"
        article = "an" if kind[0] in "AEIO" else "a"
        raise ValueError(f"{path} cannot be read as {article} {kind}: {reason}") from None


class _Kind:
    """Placeholder for a numpy dtype: only plain booleans, integers and floats."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf]\d+", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, expected numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order.replace("=", "") + self.code)


class _Array:
    """Placeholder for a numpy array, whose state holds its bytes."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, data = state
        self.value = _from_bytes(data, kind, shape, "F" if columns_first else "C")


def _from_bytes(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(kind, _Kind) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array of something else than numbers")
    # not copied: a file may name the same bytes any number of times
    return np.frombuffer(data, kind.numpy()).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, data: Any) -> Any:
    return _from_bytes(data, kind, (), "C").item()


_ARRAYS: dict[tuple[str, str], Any] = {("numpy", "dtype"): _Kind, ("numpy", "ndarray"): _Array}


for _package in ("numpy.core", "numpy._core"):  # before and after numpy 2
    _ARRAYS[f"{_package}.multiarray", "_reconstruct"] = _Array
    _ARRAYS[f"{_package}.multiarray", "scalar"] = Function(_scalar)
    _ARRAYS[f"{_package}.numeric", "_frombuffer"] = Function(_from_bytes)


def array_names(path: str | Path) -> dict[tuple[str, str], Any]:
    """Return the names of numpy's arrays and numbers in the pickle `path`, for `read_inert`.

    Numbers become Python's; arrays are placeholders until `unwrap_arrays`. They hold no more bytes than the file.
    """
    left = Path(path).stat().st_size

    def encode(text: Any, encoding: Any) -> bytes:
        nonlocal left
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes something else than the bytes of an array")
        left -= len(text)
        if left < 0:
            raise pickle.UnpicklingError("its arrays have more bytes than the file")
        return text.encode("latin1")

    return _ARRAYS | {("_codecs", "encode"): Function(encode)}


def read_arrays(path: str | Path, *, kind: str) -> Any:
    """Return the content of a pickle of numbers and arrays: a dict of numbers, arrays and dicts of these.

    `kind` names the expected kind of file in errors.

    Raises:
        ValueError: naming the file and any other name it refers to, or if it is truncated or not a pickle.
        OSError: if it cannot be opened.
    """
    names = {("collections", "OrderedDict"): collections.OrderedDict, ("dnnlib.util", "EasyDict"): Items}
    return unwrap_arrays(read_inert(path, names | array_names(path), kind=kind), depth=2)


def unwrap_arrays(value: Any, *, depth: int) -> Any:
    """Return `value` with arrays in place of their placeholders, in dicts nested to `depth`."""
    if isinstance(value, dict) and depth:  # a file may hold a dict that contains itself
        return {key: unwrap_arrays(each, depth=depth - 1) for key, each in value.items()}
    return value.value if isinstance(value, _Array) else value
