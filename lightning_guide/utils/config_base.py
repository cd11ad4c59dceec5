"""Configs that inherit from others: the key `base` of a YAML file.

A config begins with ``base: [../base/edm.yaml, ../base/callbacks.yaml]``, or with one file. The files are relative to
the folder of the config, else ``configs/...`` of the package, and may have a base themselves. They are merged in this
order, the config last: mappings are merged key by key, lists and values are replaced. A mapping with another
`class_path` replaces the earlier one entirely.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.run_places import in_place, run_of_config
from lightning_guide.utils.shipped import find_config

__all__ = ["BASE", "check_config", "config_files", "merge_settings", "read_with_base"]

BASE = "base"


def read_with_base(path: str | Path, load: Callable[[Path], Any]) -> Any:
    """Return the content of a YAML file merged over the files of its `base`; `load` reads one file.

    Paths in the config of a run are where the run is now (`run_places.in_place`).

    Raises:
        ValueError: if `base` names no file, a file twice, a file that does not exist or that inherits from itself.
    """
    return _read(find_config(path), load, ())


def config_files(path: str | Path) -> Iterator[Path]:
    """Yield a YAML file, then the files that it inherits from, each before it is read.

    Raises:
        ValueError: as `read_with_base`.
    """
    yield from _walk(find_config(path), ())


def _read(path: Path, load: Callable[[Path], Any], above: tuple[Path, ...]) -> Any:
    content = load(path)
    if run := run_of_config(path):
        content = in_place(content, run.absolute() if above else run)
    if not isinstance(content, dict) or BASE not in content:
        return content
    inherited: dict[Any, Any] = {}
    for file in _base(path, content[BASE], above):
        found = _read(file, load, (*above, path))
        if not isinstance(found, dict | None):
            raise ValueError(f"{file} is the base of {path}, but holds {found!r}; expected keys and values")
        inherited = merge_settings(inherited, found or {})
    return merge_settings(inherited, {key: value for key, value in content.items() if key != BASE})


def _walk(path: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    yield path
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        if key.value == BASE:
            try:
                written = SafeConstructor().construct_document(value)
            except yaml.YAMLError:  # an unknown tag
                written = {value.tag}
            for file in _base(path, written, above):
                yield from _walk(file, (*above, path))


def _base(path: Path, written: Any, above: tuple[Path, ...]) -> list[Path]:
    """Return the files that `path` lists under `base`; `above` are the files that inherit from `path`."""
    names = written if isinstance(written, list) else [written]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{path}: base is {written!r}; expected a file or a list of files")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: base names {twice[0]} twice; expected it once")
    files = [find_config(name, path.parent) for name in names]
    for file in files:
        if not file.is_file():
            found = "is a folder" if file.is_dir() else f"does not exist{did_you_mean(file)}"
            raise ValueError(f"{path}: base {file} {found}; expected a file relative to the folder of this one")
        if any(file.samefile(other) for other in (*above, path)):
            raise ValueError(f"{path}: base {file} inherits from this file; expected no circle")
    return files


def merge_settings(base: Any, changes: Any) -> Any:
    """Merge `changes` over `base` key by key if both are mappings; another class_path or a list replaces everything."""
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return copy.deepcopy(changes)
    if "class_path" in changes and _class_name(base) != _class_name(changes):
        return copy.deepcopy(dict(changes))
    merged = {key: merge_settings(base.get(key), value) for key, value in changes.items() if key != "class_path"}
    return copy.deepcopy(dict(base)) | merged


def _class_name(node: Mapping[str, Any]) -> str:
    """Return the name of a class without its module, which configs may omit."""
    return str(node.get("class_path")).rpartition(".")[2]


def check_config(settings: Any, source: object) -> dict[str, Any]:
    """Check that `settings` are the config of a run and return them; `source` names them in errors.

    Raises:
        ValueError: if they, their trainer, model or its init_args are not keys and values.
    """
    parts = {"": settings}
    if isinstance(settings, dict):
        model = settings.get("model")
        parts |= {"trainer is ": settings.get("trainer") or {}, "model is ": model}
        parts |= {"model.init_args is ": model.get("init_args") or {}} if isinstance(model, dict) else {}
    for where, part in parts.items():
        if not isinstance(part, dict):
            held = where or "the content is "
            raise ValueError(f"{source} is no config of a run: {held}{part!r:.100}; expected keys and values")
    found: dict[str, Any] = settings
    return found
