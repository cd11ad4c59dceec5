"""Mistakes of a whole command line: the configs and the options after them, as the parser merges them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.cli.configs import named_configs
from lightning_guide.cli.table import COMMANDS, read_signature
from lightning_guide.utils.config_base import merge_settings
from lightning_guide.utils.explain import sure_mistakes
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.mistakes import Keys, arguments_of, find_class_of_kind
from lightning_guide.utils.parser import update_paths
from lightning_guide.utils.places import Mistake, describe, list_mistakes, place_of, unknown_key

__all__ = ["explain_words"]


class _FoundError(Exception):
    """A mistake in the name of an option."""


def explain_words(message: str, words: Sequence[str], keys: Keys) -> str:
    """Return a sentence about each mistake in the command line `words`, or `message` of the parser."""
    files, options = list(named_configs(words[1:])), dict[str, str]()
    settings: Any = {}
    said: list[str] = []
    for file in files:
        settings = merge_settings(settings, update_paths(read_yaml(file)))
    for option, value in _options(words):
        name = option.removeprefix("--").removesuffix("+")
        is_text = keys.kinds.get(name) in (str, str | None)  # a path, not what its file holds
        try:
            read = value if is_text else _value(value, option.endswith("+"))
            settings = _lay(settings, keys, name.split("."), read, ())
        except _FoundError as error:
            said.append(f"{option}: {error}")
        options[name] = f"{option}={value}" if option.endswith("+") else option
    found = sure_mistakes("" if said else message, settings, keys)
    return list_mistakes([*said, *(_sentence(each, options, files) for each in found)] or [message])


def _sentence(mistake: Mistake, options: Mapping[str, str], files: Sequence[str]) -> str:
    """Describe a mistake, with the option or the place in a file that has it."""
    option = _option_of(mistake, options)
    if option and _plain(mistake.path) == _plain(option.removeprefix("--").partition("+=")[0].split(".")):
        return describe(dataclasses.replace(mistake, path=(option,)))
    return describe(mistake, option or place_of(mistake.path, files))


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of the options on a command line, and of the arguments that are given by their place."""
    found, waiting = [], list(words[1:])
    function = COMMANDS[words[0]].function
    places = [each.name for each in read_signature(function).positionals] if function else []
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        if option in ("-c", "--config", "--print_config") or not option.startswith("--"):
            if option in ("-c", "--config") and not equals:
                waiting[:1] = []
            elif not option.startswith("-") and places:
                found.append((f"--{places.pop(0)}", option + equals + value))
            continue
        if equals or waiting:
            found.append((option, value if equals else waiting.pop(0)))
    return found


def _value(text: str, appended: bool) -> Any:
    try:
        value = update_paths(yaml.safe_load(text))
        if isinstance(value, str) and value.endswith((".yaml", ".yml")) and Path(value).is_file():
            value = update_paths(read_yaml(value))
    except yaml.YAMLError:
        value = text
    return [value] if appended and not isinstance(value, list) else value


def _option_of(mistake: Mistake, options: Mapping[str, str]) -> str:
    """The option that sets the key of a mistake, or a part of it."""
    key = _plain(mistake.path)
    for length in range(len(key), 0, -1):
        for name, option in reversed(list(options.items())):
            if _plain(name.split(".")) == key[:length]:
                return option
    return ""


def _plain(path: Sequence[str]) -> list[str]:
    """Key path as it is written on a command line."""
    return [part for part in path if part not in ("init_args", "class_path") and not part.isdigit()]


def _lay(now: Any, kind: Any, parts: list[str], value: Any, path: tuple[str, ...]) -> Any:
    """Return `now` of type `kind` with `value` laid over it at the key path `parts`."""
    if not parts:
        if isinstance(now, list) and isinstance(value, list):
            return [*now, *value]
        same = isinstance(value, str) and isinstance(now, Mapping) and now.get("class_path") == value
        return now if same else merge_settings(now, value)
    head, *rest = parts
    kind = _alternative(kind, now)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and not isinstance(kind, Keys):
        kind = arguments_of(typing.cast(Any, kind))
    if isinstance(kind, Keys):
        if head not in kind.kinds:
            if kind.open:
                return now
            raise _FoundError(unknown_key(head, kind.owner, kind.kinds))
        below = now if isinstance(now, Mapping) else {}
        return {**below, head: _lay(below.get(head), kind.kinds[head], rest, value, (*path, head))}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        below = now if isinstance(now, Mapping) else {}
        dotted = [length for length in range(len(parts), 0, -1) if ".".join(parts[:length]) in below]
        length = dotted[0] if dotted else 1
        key = ".".join(parts[:length])
        return {**below, key: _lay(below.get(key), inner[1], parts[length:], value, (*path, key))}
    if isinstance(origin, type) and issubclass(origin, Iterable) and isinstance(now, list) and now:
        return [*now[:-1], _lay(now[-1], inner[0], parts, value, (*path, str(len(now) - 1)))]
    if origin is typing.get_origin(Callable[..., Any]):
        kind = inner[-1]
    return _lay_class(now, kind, parts, value, path) if isinstance(kind, type) else now


def _lay_class(now: Any, kind: type, parts: list[str], value: Any, path: tuple[str, ...]) -> Any:
    settings = {"class_path": now} if isinstance(now, str) else dict(now or {})
    head, *rest = parts
    if head in ("class_path", "dict_kwargs"):
        return settings | {head: value} if not rest else settings
    name = settings.get("class_path")
    if not isinstance(name, str):
        raise _FoundError(f"{'.'.join(path)} has no class yet; set it first, as --{'.'.join(_plain(path))} NAME")
    found = find_class_of_kind(name, kind)
    if isinstance(found, str):
        return settings
    parts = rest if head == "init_args" else parts
    inner = _lay(settings.get("init_args") or {}, arguments_of(found), parts, value, (*path, "init_args"))
    return settings | {"init_args": inner}


def _alternative(kind: Any, now: Any) -> Any:
    """Return the alternative of a union that `now` seems to be, else the first that holds others."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    parts = [each for each in typing.get_args(kind) if each not in (type(None), int, float, bool, str)]
    lists = [each for each in parts if isinstance(typing.get_origin(each), type)]
    lists = [each for each in lists if not issubclass(typing.get_origin(each), Mapping)]
    chosen = lists if isinstance(now, list) else [each for each in parts if each not in lists]
    return next(iter(chosen or parts), Any)
