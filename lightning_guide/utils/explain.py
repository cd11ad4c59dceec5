"""Sentences about the mistakes in a config that the parser refused: file, line, key path, nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.utils.config_base import config_files
from lightning_guide.utils.files import read_node
from lightning_guide.utils.mistakes import Mistake, find_mistakes

__all__ = ["describe", "explain", "first_mistake", "place_of"]


def explain(
    message: str, value: Any, kind: Any, *, at: Sequence[str] = (), files: Iterable[str | Path] = (), where: str = ""
) -> str:
    """Return a sentence about the first mistake in `value`, or `message` of the parser if none is found.

    Args:
        message: of the parser, in one sentence.
        value: plain data that should be of `kind`.
        kind: annotation, or `Keys`.
        at: key path of `value` in `files`.
        files: configs that were merged, later ones over earlier ones.
        where: place that is named if no file holds the key.
    """
    mistake = first_mistake(message, value, kind, tuple(at))
    return message if mistake is None else describe(mistake, place_of(mistake.path, files) or where)


def first_mistake(message: str, value: Any, kind: Any, path: tuple[str, ...] = ()) -> Mistake | None:
    """Return the first mistake that is certain, else the first whose key `message` names."""
    found = list(find_mistakes(value, kind, path))
    return next((each for each in found if each.certain or (each.path and each.path[-1] in message)), None)


def describe(mistake: Mistake, where: str = "") -> str:
    """Return place, key path and sentence."""
    key = ".".join(mistake.path)
    verb = mistake.said.startswith(("is ", "has "))
    return f"{f'{where}: ' if where else ''}{key}{'' if verb else ': '}{' ' if verb else ''}{mistake.said}"


def place_of(path: Sequence[str], files: Iterable[str | Path]) -> str:
    """Return file and line of a key path in the last of `files`, or the files that they inherit from, that has it."""
    for file in reversed(list(files)):
        own, *inherited = config_files(file)
        for each in (own, *reversed(inherited)):
            root = read_node(each)
            if root is not None and (line := _line(root, list(path))) is not None:
                return f"{each}, line {line}"
    return ""


def _line(node: yaml.Node, path: list[str]) -> int | None:
    """Line of a key path below a node."""
    if not path:
        return node.start_mark.line + 1
    for key, child in _children(node):
        if key is not None and (key.value if isinstance(key, yaml.Node) else key) == path[0]:
            start = key.start_mark if isinstance(key, yaml.Node) else child.start_mark
            return start.line + 1 if len(path) == 1 else _line(child, path[1:])
    return None


def _children(node: yaml.Node) -> Iterator[tuple[yaml.Node | str, yaml.Node]]:
    """Keys, or places in a list, with their nodes; of merged mappings, too."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((str(i), child) for i, child in enumerate(node.value))
    if isinstance(node, yaml.MappingNode):
        merged = [child for key, child in node.value if key.value == "<<"]
        yield from ((key, child) for key, child in node.value if key.value != "<<")
        for each in merged:
            for part in each.value if isinstance(each, yaml.SequenceNode) else [each]:
                yield from _children(part)
