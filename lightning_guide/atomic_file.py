"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic"]


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Hands out a temporary path in the folder of `path`; what is written there becomes `path` at once.

    A process killed inside leaves `path` as it was and at most the temporary file, a dot file ending in ``.tmp``.
    If `durable`, the new file also survives a loss of power from the moment this returns.

    Raises:
        OSError: naming `path`, if the disk refuses to write on.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if durable:
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Waits until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
