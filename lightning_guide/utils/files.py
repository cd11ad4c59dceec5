"""Atomic file writes, YAML and JSON files without duplicate keys, and npz archives."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import re
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from safetensors import SafetensorError

from lightning_guide.utils.arrays import reason_for_refusal
from lightning_guide.utils.config_base import read_with_base
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.shipped import find_config
from lightning_guide.utils.yaml_keys import MERGE, keep_keys, mapping_nodes

__all__ = [
    "STALE",
    "append_to",
    "atomic",
    "make_folder",
    "parse_json",
    "read_node",
    "read_numbers",
    "read_one",
    "read_yaml",
    "remove_temporary",
    "write_numbers",
]


STALE = 60.0  # seconds without a change after which a temporary file is that of a killed process
_OF_TORCH_SAVE = re.compile("PytorchStreamWriter|inline_container|basic_ios")


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path in the folder of `path`, then rename it to `path`.

    The folder is created. The file gets the mode of the umask, whichever library writes it. Several threads and
    processes may write the same path: each has a temporary file of its own. A process killed inside leaves `path`
    unchanged and at most the temporary file, a dot file ending in ``.tmp``. If `durable`, the new file is on disk when
    this returns, so that it survives a power failure.

    Raises:
        OSError: naming `path`, or the file in place of its folder, if writing fails; `path` is unchanged.
    """
    make_folder(path.parent)
    temporary = _temporary(path)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:  # libraries that write by way of a private file
            temporary.chmod(mode)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        here = {None, str(temporary)}
        if isinstance(error, OSError) and error.errno and (error.filename in here or error.filename2 in here - {None}):
            raise OSError(error.errno, error.strerror, str(path)) from error
        if isinstance(error, SafetensorError) or (
            isinstance(error, RuntimeError) and _OF_TORCH_SAVE.search(str(error))
        ):
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}; is there space on the disk?") from error
        raise
    if durable:
        _sync(path.parent)


@contextmanager
def append_to(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be read and appended to, create its folder, and name the file in errors.

    Raises:
        OSError: naming `path`.
    """
    make_folder(path.parent)
    try:
        with path.open("ab+") as file:
            yield file
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_folder(path: str | Path) -> Path:
    """Create a folder and those above it unless they exist, and return it.

    Raises:
        OSError: naming the file in its place, or the folder that cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((each for each in (folder, *folder.parents) if each.exists()), folder)
        raise NotADirectoryError(errno.ENOTDIR, "is a file; expected a folder", str(file)) from None
    return folder


def remove_temporary(folder: str | Path, pattern: str = "*", *, seconds: float = 0) -> None:
    """Remove the temporary files that killed writers of files like `pattern` left in `folder`, which nobody writes.

    Where somebody may write, those alone that were not changed for so many `seconds`.
    """
    for part in (".tmp", ".*.tmp"):
        for stray in Path(folder).glob(f".{pattern}{part}"):
            with suppress(FileNotFoundError):
                if not seconds or time.time() - stray.stat().st_mtime > seconds:
                    stray.unlink()


def _temporary(path: Path) -> Path:
    """Return the temporary file of this thread for `path`; names that would be too long are cut."""
    writer = zlib.crc32(f"{platform.node()} {os.getpid()} {threading.get_ident()}".encode())
    name = path.name if len(os.fsencode(path.name)) < 240 else path.name[:50]
    return path.with_name(f".{name}.{writer:08x}.tmp")


def _sync(path: Path) -> None:
    """Wait until a file, or the directory entries of a folder, are on disk; some network disks cannot sync folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


try:  # the loader of the config parser; it is more lenient about tabs than SafeLoader
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader


def read_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file, merged over the files of its `base`.

    Raises:
        ValueError: as `read_one`, of any of the files.
    """
    return read_with_base(path, read_one)


def read_one(path: str | Path) -> Any:
    """Return the content of a YAML file alone; None if it is empty.

    Raises:
        ValueError: as `read_node`.
    """
    return _read(path, lambda loader, node: None if node is None else loader.construct_document(node))


def read_node(path: str | Path) -> yaml.Node | None:
    """Return the root of a YAML file, whose values are not constructed; None if it is empty.

    Raises:
        ValueError: naming the file, if it does not exist or is no YAML in UTF-8, and the line of a duplicate key in a
            mapping, of which a parser would silently take the last value.
    """
    found: yaml.Node | None = _read(path, lambda _, node: node)
    return found


def _read(path: str | Path, result: Callable[[Any, yaml.Node | None], Any]) -> Any:
    path = Path(path).expanduser()
    try:
        loader = Loader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is not None:
                _every_key_once(node)
                keep_keys(node)
            return result(loader, node)
        finally:
            loader.dispose()
    except FileNotFoundError:
        near = did_you_mean(path) or did_you_mean(find_config(path.parent) / path.name)
        raise ValueError(f"{path} does not exist{near}; expected a YAML file") from None
    except OSError as error:
        found = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise ValueError(f"{path} {found}; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: byte {error.start} is not UTF-8; expected a text file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {_explain(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def _explain(error: yaml.YAMLError) -> str:
    """Return line, column and problem of an error of the YAML parser."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = [getattr(error, "context", None), getattr(error, "problem", None)]
    said = ", ".join(word for word in words if word) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}" if mark else said


def _every_key_once(root: yaml.Node) -> None:
    """Raise ValueError for a duplicate key in any mapping under `root`, before merge keys are resolved."""
    for node in mapping_nodes(root):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and key.tag != MERGE:
                raise ValueError(f"line {line}: duplicate key {key.value!r} (first defined on line {lines[name]})")
            lines[name] = line


def parse_json(text: str | bytes, place: str | Path) -> Any:
    """Return the content of JSON `text`, which was found in `place`.

    Raises:
        ValueError: naming the place, if the text is damaged or nested too deeply, or a key occurs twice in an object.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is damaged ({error}); expected JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; refuse a key that occurs twice, of which the last value would be taken."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return content


def write_numbers(path: str | Path, numbers: Mapping[str, Any]) -> Path:
    """Write arrays, numbers and strings by name to the npz archive `path`, as `atomic` does.

    Raises:
        OSError: if writing fails.
    """
    content = io.BytesIO()
    arrays: Any = {key: np.asarray(value) for key, value in numbers.items()}
    np.savez(content, **arrays)
    with atomic(Path(path), durable=False) as temporary:
        temporary.write_bytes(content.getvalue())
    return Path(path)


def read_numbers(path: str | Path, *, what: str) -> dict[str, Any]:
    """Return the arrays of an npz archive by name, without unpickling; `what` describes the archive in errors.

    Raises:
        ValueError: naming the file and the member, if it is damaged or not an npz archive.
    """
    member = ""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no npz archive, or its end is missing")
        numbers = {}
        with np.load(path, allow_pickle=False) as archive:
            for member in archive.files:
                numbers[member] = archive[member]
        return numbers
    except Exception as error:  # zipfile and numpy raise many types for damaged files
        where = f"{member!r} in it is damaged: " if member else ""
        raise ValueError(f"{path} cannot be read as {what}: {where}{reason_for_refusal(error)}") from None
