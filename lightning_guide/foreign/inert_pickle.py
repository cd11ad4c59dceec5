"""Pickles from elsewhere, read without running anything in them.

A pickle names the functions and classes it wants called. This reader is given the few names that a kind of file needs,
each with an inert stand-in; a file that asks for any other is refused, and so is any reference to the outside.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

__all__ = ["Function", "Items", "read_inert"]


class Items(dict[str, Any]):
    """A dict with attributes, as data."""

    def __setstate__(self, state: Any) -> None:
        self.update(state)


class Function:
    """A function of the file's choice, which may be called and not altered."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("it alters a function")


class _Reader(pickle.Unpickler):
    """Finds stand-ins and nothing else."""

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
    """The content of a pickle that asks for nothing but the names (module, name) that are `known`, each a stand-in.

    Raises:
        ValueError: naming the file and what it asks for beyond that, or if it is cut off or no pickle; `kind` says what
            was expected.
        OSError: if it cannot be opened.
    """
    try:
        with Path(path).open("rb") as file:
            return _Reader(file, known, kind).load()
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything, here in inert stand-ins only
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: {error}"
        article = "an" if kind[0] in "AEIO" else "a"
        raise ValueError(f"{path} cannot be read as {article} {kind}: {reason}") from None
