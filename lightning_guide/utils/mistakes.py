"""Mistakes in parsed configs: unknown keys and classes, classes of another kind, values of another type.

The parser accepts a config; this module is asked what is wrong in one that it refused. It compares plain data with type
annotations, and names the key path and the nearest right key or class.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning_guide import PUBLIC
from lightning_guide.utils.errors import nearest
from lightning_guide.utils.places import SHOWN, Mistake, unknown_key
from lightning_guide.utils.recipe import find_class
from lightning_guide.utils.scalars import SCALARS, is_no_number

__all__ = ["Keys", "arguments_of", "find_class_of_kind", "find_mistakes"]

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


@dataclasses.dataclass(frozen=True)
class Keys:
    """A mapping with known keys: name -> annotation; `owner` has them, and takes nothing without those `required`."""

    owner: str
    kinds: Mapping[str, Any]
    open: bool = False
    required: Sequence[str] = ()


def arguments_of(function: Callable[..., Any], skip: Iterable[str] = ()) -> Keys:
    """Return the arguments of a class or a function; those that it passes on to its base class are among them."""
    kinds: dict[str, Any] = {}
    required: list[str] | None = None  # of the class itself, which may pass them on
    others = False
    for each in [vars(cls).get("__init__") for cls in function.__mro__] if isinstance(function, type) else [function]:
        if each is None or each is object.__init__:
            continue
        parameters = inspect.signature(each).parameters
        try:
            hints = typing.get_type_hints(each)
        except (NameError, TypeError):  # names that only a type checker imports
            hints = {}
        for name, parameter in list(parameters.items())[isinstance(function, type) :]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name not in skip:
                kinds.setdefault(name, hints.get(name, Any))
        if required is None:
            required = [name for name in kinds if parameters[name].default is inspect.Parameter.empty]
        if others := any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        break
    return Keys(function.__name__, kinds, open=others, required=required or ())


def find_mistakes(value: Any, kind: Any, path: tuple[str, ...] = ()) -> Iterator[Mistake]:
    """Yield the mistakes in `value`, plain data at `path` that should be of the annotated type `kind`."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, Keys):
        yield from _of_keys(value, kind, path)
    elif origin in (typing.Union, types.UnionType):
        found = [list(find_mistakes(value, each, path)) for each in parts]
        if all(found):
            deepest = max(found, key=lambda mistakes: (max(len(each.path) for each in mistakes), mistakes[0].near))
            here = all(each.path == path and not each.near for each in deepest)
            certain = all(mistakes[0].certain for mistakes in found)
            whole = Mistake(path, f"is {value!r:.80}; expected {_words(kind)}", certain=certain)
            yield from [whole] if here else deepest
    elif origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])):
        if not isinstance(value, Mapping):
            yield Mistake(path, f"is {value!r:.80}; expected names and values", certain=False)
            return
        for key, each in value.items():
            yield from find_mistakes(each, parts[1], (*path, str(key)))
    elif origin is typing.get_origin(Callable[..., Any]):
        if isinstance(value, Mapping | str) and isinstance(parts[-1], type):
            yield from (each for each in _of_class(value, parts[-1], path) if each.path != path or each.certain)
    elif isinstance(origin, type) and issubclass(origin, Iterable):
        if isinstance(value, list | tuple):
            inner = [part for part in parts if part is not ...] or [Any]
            for i, each in enumerate(value):
                yield from find_mistakes(each, inner[min(i, len(inner) - 1)], (*path, str(i)))
        else:
            yield Mistake(path, f"is {value!r:.80}; expected a list", certain=False)
    elif origin is typing.Literal:
        if value not in parts:
            near = nearest(str(value), [str(part) for part in parts])
            hint = f"; did you mean {near}?" if near else f"; expected {_words(kind)}"
            certain = bool(near) or all(isinstance(each, str) for each in (value, *parts))
            yield Mistake(path, f"is {value!r:.80}{hint}", certain=certain, near=bool(near))
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping) and "class_path" not in value:
        yield from _of_keys(value, arguments_of(typing.cast(Any, kind)), path)
    elif kind in SCALARS:
        if not _fits(value, kind):
            certain = isinstance(value, Mapping | list) or (isinstance(value, str) and is_no_number(value, [kind]))
            yield Mistake(path, f"is {value!r:.80}; expected {_words(kind)}", certain=certain)
    elif isinstance(kind, type) and kind.__module__ != builtins.__name__:
        yield from _of_class(value, kind, path)


def find_class_of_kind(name: str, kind: type) -> Callable[..., Any] | str:
    """Return the class of a class path, or without module one of a subclass of `kind`; else what is wrong."""
    known = {each.__name__: each for each in _subclasses(kind) if not each.__name__.startswith("_")}
    short = name.rpartition(".")[2]
    try:
        found = known[name] if name in known else find_class(name if "." in name else f"lightning_guide.{name}")
    except ValueError as error:
        near = nearest(short, known)
        own = "." not in name or name.startswith(("lightning_guide.", "callbacks.", "datamodules."))
        reason = "" if own else f" ({str(error).rpartition(': ')[2]})"
        return f"there is no class {name}{reason}; {f'did you mean {near}?' if near else _expected(kind, known)}"
    if isinstance(found, type) and not issubclass(found, kind):
        return f"{short} is not a {kind.__name__}; {_expected(kind, known)}"
    return typing.cast(Callable[..., Any], found)


def _of_class(value: Any, kind: type, path: tuple[str, ...]) -> Iterator[Mistake]:
    """Mistakes of an object written as class path and arguments."""
    if isinstance(value, kind) or kind.__module__.startswith(("pathlib", "os")):
        return
    if not isinstance(value, Mapping | str):
        yield Mistake(path, f"is {value!r:.80}; expected {_words(kind)}", certain=value is not None)
        return
    settings = {"class_path": value} if isinstance(value, str) else value
    name = settings.get("class_path")
    if not isinstance(name, str):
        yield Mistake(path, f"has no class_path; {_expected(kind, _named(kind))}", certain=False)
        return
    found = find_class_of_kind(name, kind)
    if isinstance(found, str):
        if isinstance(value, str) and value.islower() and "." not in value and "did you mean" not in found:
            yield Mistake(path, f"is {value!r:.80}; {_expected(kind, _named(kind))}")  # a word, no name of a class
        else:
            yield Mistake((*path, "class_path") if isinstance(value, Mapping) else path, found, near=True)
        return
    kinds = arguments_of(found).kinds
    for key, each in settings.items():
        if key not in _OF_A_CLASS:
            near, argument = nearest(str(key), _OF_A_CLASS), str(key) in kinds
            if argument:  # which is right in a file laid over one that names the class
                near = f"{'.'.join(path)}.init_args.{key}"
                yield from find_mistakes(each, kinds[str(key)], (*path, str(key)))
            hint = f"did you mean {near}?" if near else "arguments of a class are under init_args"
            yield Mistake((*path, str(key)), f"is neither class_path nor init_args; {hint}", certain=not argument)
    keys, given = arguments_of(found), settings.get("init_args") or {}
    yield from _of_keys(given, keys, (*path, "init_args"))
    if isinstance(given, Mapping) and (lacking := [name for name in keys.required if name not in given]):
        said = f"has no {' and no '.join(lacking)}, which {keys.owner} needs"
        yield Mistake(path, said, certain=False, near=True)


def _of_keys(value: Any, keys: Keys, path: tuple[str, ...]) -> Iterator[Mistake]:
    if not isinstance(value, Mapping):
        if value is not None:
            yield Mistake(path, f"is {value!r:.80}; expected keys and values")
        return
    for key, each in value.items():
        if key in keys.kinds:
            yield from find_mistakes(each, keys.kinds[key], (*path, str(key)))
        elif not keys.open:
            yield Mistake((*path, str(key)), unknown_key(str(key), keys.owner, keys.kinds))


def _fits(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value) is not None
        except ValueError:
            return False
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _words(kind: Any) -> str:
    """Name a type in plain words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(each) for each in parts))
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    if kind in SCALARS:
        return SCALARS[kind]
    if isinstance(origin, type):
        return "names and values" if issubclass(origin, Mapping) else "a list"
    return f"a {kind.__name__}, as class_path and init_args" if isinstance(kind, type) else "another type"


def _expected(kind: type, known: Iterable[str]) -> str:
    names = sorted(each for each in known if each in _public()) or sorted(known)
    return f"expected a {kind.__name__}" + (f": {', '.join(names[:SHOWN])}" if names else "")


def _named(kind: type) -> list[str]:
    return [each.__name__ for each in _subclasses(kind) if not each.__name__.startswith("_")]


def _subclasses(kind: type) -> Iterator[type]:
    """Classes of a kind that are imported and not abstract."""
    if not inspect.isabstract(kind):
        yield kind
    below: list[type] = kind.__subclasses__()
    for each in below:
        yield from _subclasses(each)


def _public() -> set[str]:
    return {name for package in map(importlib.import_module, PUBLIC) for name in package.__all__}
