"""Atomic file writes, YAML files without duplicate keys, and npz archives."""

from __future__ import annotations

import functools
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import yaml

from lightning_guide.utils.config_base import config_files, read_with_base

__all__ = ["atomic", "check_keys", "check_config_files", "read_numbers", "read_yaml", "write_numbers"]


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path in the folder of `path`, then rename it to `path`.

    A process killed inside leaves `path` unchanged and at most the temporary file, a dot file ending in ``.tmp``.
    If `durable`, the new file is on disk when this returns, so that it survives a power failure.

    Raises:
        OSError: naming `path`, if writing fails.
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
    """Wait until a file, or the directory entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


try:  # the loader of the config parser; it is more lenient about tabs than SafeLoader
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader


_MERGE = "tag:yaml.org,2002:merge"  # a merge key may occur twice: neither of the merges is lost


def check_keys(path: str | Path) -> None:
    """Refuse a YAML file with a duplicate key in one mapping, of which a parser would silently take the last value.

    Raises:
        ValueError: naming the file and both lines, or if the file is not valid YAML.
        OSError: if it cannot be read.
    """
    _load(path, build=False)


def check_config_files(words: Sequence[str]) -> None:
    """Call `check_keys` for the config files on a command line: after -c and --config, or ending in .yaml or .yml.

    Raises:
        ValueError: as `check_keys`.
        OSError: as `check_keys`.
    """
    named = [value for flag, value in itertools.pairwise(words) if flag in ("-c", "--config")]
    for word in words:
        flag, _, value = word.partition("=")
        named += [value] if flag in ("-c", "--config") else []
        named += [each for each in (word, value, word.removeprefix("-c")) if each.endswith((".yaml", ".yml"))]
    for file in filter(os.path.isfile, named):
        for each in config_files(file):
            check_keys(each)


def read_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file, merged over the files of its `base`.

    Raises:
        ValueError: naming the file, if it is not valid YAML or has a duplicate key in one mapping.
        OSError: if it cannot be read.
    """
    return read_with_base(path, functools.partial(_load, build=True))


def _load(path: str | Path, *, build: bool) -> Any:
    """Check a file and return its data; None unless `build`, if another parser constructs the values."""
    try:
        loader = Loader(Path(path).read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _every_key_once(node)
            return loader.construct_document(node) if build else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def _every_key_once(root: yaml.Node) -> None:
    """Raise ValueError for a duplicate key in any mapping under `root`, before merge keys are resolved."""
    seen, waiting = set[int](), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))  # an alias is the node itself, and may lead back to it
        if not isinstance(node, yaml.MappingNode):
            waiting += reversed(node.value)
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines and key.tag != _MERGE:
                raise ValueError(f"line {line}: duplicate key {key.value!r} (first defined on line {lines[name]})")
            lines[name] = line
        waiting += [value for _, value in reversed(node.value)]


def write_numbers(path: str | Path, numbers: Mapping[str, Any]) -> Path:
    """Write arrays, numbers and strings by name to the npz archive `path`, atomically; create the folder.

    Several processes may write the same path: each has a temporary file of its own.

    Raises:
        OSError: if writing fails.
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
    """Return the arrays of an npz archive by name, without unpickling; `what` describes the archive in errors.

    Raises:
        ValueError: naming the file, if it is damaged or not an npz archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile and numpy raise many types for damaged files
        raise ValueError(f"{path} cannot be read as {what}: {type(error).__name__}: {error}") from None
