"""Places of keys in config files, and the words for a mistake at one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_guide.utils.config_base import config_files
from lightning_guide.utils.errors import nearest
from lightning_guide.utils.files import read_node

__all__ = ["SHOWN", "Mistake", "describe", "list_mistakes", "place_of", "unknown_key"]

SHOWN = 12  # names in a list of what is possible


@dataclass(frozen=True)
class Mistake:
    """Key path of a mistake and a sentence about it.

    Attributes:
        certain: no other reading of the type is possible.
        near: the sentence is about a name that was meant, a class or one of several words.
    """

    path: tuple[str, ...]
    said: str
    certain: bool = True
    near: bool = False


def unknown_key(key: str, owner: str, known: Collection[str]) -> str:
    """Return a sentence about a key that is not one of those that `owner` has."""
    near = nearest(key, known)
    there = ", ".join(list(known)[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    hint = f"did you mean {near}?" if near else f"there are {there}" if known else "it has none"
    return f"{owner} has no argument {key}; {hint}"


def describe(mistake: Mistake, where: str = "") -> str:
    """Return place, key path and sentence."""
    key = ".".join(mistake.path)
    verb = mistake.said.startswith(("is ", "has "))
    return f"{f'{where}: ' if where else ''}{key}{'' if verb else ': '}{' ' if verb else ''}{mistake.said}"


def list_mistakes(sentences: Iterable[str]) -> str:
    """Return one sentence as it is, several as a list with a line for each."""
    found = list(dict.fromkeys(sentences))
    return found[0] if len(found) == 1 else "\n- ".join([f"{len(found)} mistakes:", *found])


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
