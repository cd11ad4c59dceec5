"""Arguments of the library's classes, read from their sources, so that mistakes in them are found before any import.

Found are unknown names, and words or lists in place of numbers. What cannot be read with certainty, such as classes of
other packages and inherited arguments of theirs, is left to the parser.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from lightning_guide import PUBLIC, RENAMED, RENAMED_ARGUMENTS
from lightning_guide.cli.scalars import option_values, wrong_value
from lightning_guide.cli.table import find_source
from lightning_guide.utils.config_base import merge_settings
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.places import Mistake, describe, place_of, unknown_key

__all__ = ["argument_mistakes", "class_arguments"]

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


class _Class(NamedTuple):
    module: str
    node: ast.ClassDef


def argument_mistakes(words: Sequence[str], files: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each mistake in an argument of a class, in the merged configs `files` or options of `words`.

    It names file and line, or the option, the key path and the nearest right name.
    """
    settings: Any = {}
    for file in files:
        settings = merge_settings(settings, read_yaml(file))
    for mistake in _mistakes(settings, ()):
        yield describe(mistake, place_of(mistake.path, files))
    given = [each for each in option_values(words) if each[0].startswith(("--model", "--data", "--trainer"))]
    options = [option for option, _ in given]
    for i, (option, value) in enumerate(given):
        name = option.removeprefix("--").removesuffix("+")
        earlier = (other[2:].removesuffix("+").removesuffix(".class_path") for other in options[:i])  # may set a class
        if not any(name.startswith(f"{other}.") for other in earlier):
            yield from _of_option(option, value, settings, name.split("."))


def _of_option(option: str, value: Any, node: Any, parts: list[str]) -> Iterator[str]:
    for number, part in enumerate(parts, 1):
        owner = node.get("class_path") if isinstance(node, Mapping) else None
        if isinstance(owner, str) and part == "init_args":
            continue
        if isinstance(owner, str) and part not in (*_OF_A_CLASS, "help"):
            known = class_arguments(owner)
            if known is None:
                return
            if part not in known:
                yield f"{option}: {unknown_key(part, owner.rpartition('.')[2], known)}"
                return
            if number == len(parts) and (wrong := wrong_value(value, known[part])):
                yield f"{option} {wrong}"
            node = node.get("init_args") or {}
        if not isinstance(node, Mapping) or part not in node:
            return
        node = node[part]


def _mistakes(node: Any, path: tuple[str, ...]) -> Iterator[Mistake]:
    """Unknown arguments of the classes below `node`."""
    if isinstance(node, list):
        for i, each in enumerate(node):
            yield from _mistakes(each, (*path, str(i)))
    if not isinstance(node, Mapping):
        return
    owner, arguments = node.get("class_path"), node.get("init_args")
    if isinstance(owner, str) and isinstance(arguments, Mapping) and (known := class_arguments(owner)) is not None:
        for key, value in arguments.items():
            if key not in known:
                said = unknown_key(str(key), owner.rpartition(".")[2], known)
                yield Mistake((*path, "init_args", str(key)), said)
            elif wrong := wrong_value(value, known[key]):
                yield Mistake((*path, "init_args", str(key)), wrong)
    for key, each in node.items():
        yield from _mistakes(each, (*path, str(key)))


@cache
def class_arguments(path: str) -> dict[str, str] | None:
    """Return arguments and annotations of a class of this library; None if they cannot be read for certain.

    Old names of arguments are among them, without annotation.
    """
    path = RENAMED.get(path, path)
    module, _, name = path.rpartition(".")
    if module and module.split(".")[0] not in {package.split(".")[0] for package in PUBLIC}:
        return None
    places = PUBLIC if module in ("", "lightning_guide") else [module]
    found = {each for place in places if (each := _find(place, name))}
    known = _arguments(found.pop()) if len(found) == 1 else None
    return None if known is None else known | dict.fromkeys(RENAMED_ARGUMENTS.get(name, {}), "")


@cache
def _tree(module: str) -> ast.Module | None:
    path = find_source(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _find(module: str, name: str) -> _Class | None:
    """Find a class in a module, or where it is imported from."""
    tree = _tree(module)
    for node in tree.body if tree else []:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _Class(module, node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == module.split(".")[0]:
            for alias in node.names:
                if (alias.asname or alias.name) == name or alias.name == "*":
                    if found := _find(node.module, name if alias.name == "*" else alias.name):
                        return found
    return None


def _arguments(found: _Class) -> dict[str, str] | None:
    """Arguments and annotations of the constructor of a class, its own or its first base's."""
    if any("dataclass" in ast.unparse(each) for each in found.node.decorator_list):
        return None
    made = [
        each for each in found.node.body if isinstance(each, ast.FunctionDef) and each.name in ("__init__", "__new__")
    ]
    if made and made[0].name == "__init__":
        arguments = made[0].args
        if arguments.kwarg or arguments.vararg:
            return None
        every = itertools.chain(arguments.args[1:], arguments.kwonlyargs)
        return {each.arg: ast.unparse(each.annotation) if each.annotation else "" for each in every}
    bases = [each.id for each in found.node.bases if isinstance(each, ast.Name)]
    if made or len(found.node.bases) != 1 or not bases or (base := _find(found.module, bases[0])) is None:
        return None
    return _arguments(base)
