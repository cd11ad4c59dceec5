"""Named entries, such as metrics, that a config on the command line replaces in an earlier one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from lightning_guide.cli.classes import class_arguments
from lightning_guide.utils.config_base import merge_settings
from lightning_guide.utils.files import read_yaml

__all__ = ["replaced_entries"]


def replaced_entries(files: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each of `files` that replaces such entries, with their names.

    The parser merges the arguments of classes key by key, but replaces an argument that is itself a mapping.
    """
    if len(files) < 2:
        return
    contents = [read_yaml(file) for file in files]
    found: dict[tuple[str, str], list[str]] = {}
    for path in _named(reduce(merge_settings, contents, {}), (), {}):
        values = [(file, _at(content, path)) for file, content in zip(files, contents, strict=True)]
        for (earlier, old), (later, new) in itertools.pairwise(each for each in values if isinstance(each[1], Mapping)):
            if names := [str(name) for name in old if name not in new or new[name] != old[name]]:
                found.setdefault((later, earlier), []).append(f"{path[-1]} {', '.join(names)}")
    for (later, earlier), named in found.items():
        yield f"{later} replaces {' and '.join(named)} of {earlier}; inherit that by base to keep them"


def _named(node: Any, path: tuple[str, ...], arguments: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield key paths of the mappings below `node`, keys of `arguments`, that are the value of an argument."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, Mapping) and arguments.get(key, "").startswith(("dict[", "Mapping[")):
            yield (*path, key)
        else:
            of_class = key == "init_args" and isinstance(owner := node.get("class_path"), str)
            yield from _named(value, (*path, key), (class_arguments(owner) or {}) if of_class else {})


def _at(content: Any, path: Sequence[str]) -> Any:
    """Return the value at a key path; None without one."""
    return reduce(lambda node, key: node.get(key) if isinstance(node, Mapping) else None, path, content)
