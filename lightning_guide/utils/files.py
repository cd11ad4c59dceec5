"""Files that are there whole or not at all, whatever happens while they are written.

YAML files that users write: plain data, in which no key is given twice.

Archives of numbers (npz), written at once by any number of processes, read without running anything in them.
"""

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


try:  # the loader that the configs' parser uses: more lenient about tabs than the other
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader


_MERGE = "tag:yaml.org,2002:merge"  # of two merges in one mapping neither is lost


def check_keys(path: str | Path) -> None:
    """Refuses a file in which a key stands twice in one mapping: a parser would take the last of both.

    Raises:
        ValueError: naming the file and both lines, or if it is no YAML.
        OSError: if it cannot be read.
    """
    _load(path, build=False)


def check_config_files(words: Sequence[str]) -> None:
    """`check_keys` of the files on a command line: -c, --config, and what looks like one (--model, --data, --trainer).

    Raises:
        ValueError: as `check_keys`.
        OSError: likewise.
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
    """What a YAML file holds.

    Raises:
        ValueError: naming the file, if it is no YAML, or a key stands twice in one mapping.
        OSError: if it cannot be read.
    """
    return read_with_base(path, functools.partial(_load, build=True))


def _load(path: str | Path, *, build: bool) -> Any:
    """The data, or nothing if they are only to be checked, as somebody else gives them their types."""
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
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def _every_key_once(root: yaml.Node) -> None:
    """Looks at every mapping under `root`, before anything is merged.

    Raises:
        ValueError: naming the line and the key.
    """
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
                raise ValueError(f"line {line}: {key.value!r} stands in line {lines[name]} already; expected it once")
            lines[name] = line
        waiting += [value for _, value in reversed(node.value)]


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
