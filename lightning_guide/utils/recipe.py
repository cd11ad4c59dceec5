"""Recipes: constructor calls recorded as plain data, from which an object can be rebuilt.

A snapshot stores weights and the recipe of their network. A recipe has the form of a YAML config,
``{"class_path": "package.module.Class", "init_args": {...}}``, nested if an argument is itself such an object.
Building a recipe imports and calls only subclasses of `HasRecipe`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightning_guide import PUBLIC, RENAMED, RENAMED_ARGUMENTS

__all__ = [
    "HasRecipe",
    "build",
    "current_arguments",
    "current_path",
    "equivalent",
    "find_class",
    "key_of",
    "public_path",
]


Recipe = dict[str, Any]

_OWN = ("lightning_guide", "callbacks", "datamodules")  # packages whose names may have changed


def public_path(cls: Callable[..., Any]) -> str:
    """Return the shortest import path of `cls`: the outermost package that exports it, else its module."""
    parts = cls.__module__.split(".")
    for depth in range(1, len(parts)):
        package = ".".join(parts[:depth])
        if vars(sys.modules[package]).get(cls.__qualname__) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def find_class(path: str) -> Any:
    """Return the object at an import path; moved and renamed classes are found by their name in `PUBLIC`.

    Raises:
        ValueError: if it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        if module.split(".")[0] in _OWN:
            for package in map(importlib.import_module, PUBLIC):
                if (found := getattr(package, RENAMED.get(path, RENAMED.get(name, name)), None)) is not None:
                    return found
        raise ValueError(f"the class {path!r} cannot be imported here: {error}") from None


def current_arguments(path: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the class at `path` by their names of today.

    Raises:
        ValueError: if an argument is given by its old and its new name.
    """
    own = "." not in path or path.split(".")[0] in _OWN
    renamed = RENAMED_ARGUMENTS.get(path.rpartition(".")[2], {}) if own else {}
    for old, new in renamed.items():
        if old in arguments and new in arguments:
            raise ValueError(f"{path} has {old} and {new}, the old and the new name of one argument; expected {new}")
    return {renamed.get(key, key): value for key, value in arguments.items()}


def current_path(path: str) -> str:
    """Return the current import path of a class; a path that cannot be resolved is returned unchanged."""
    try:
        found = find_class(path) if "." in path else None
    except ValueError:
        return path
    return RENAMED.get(path, path) if found is None else public_path(found)


class HasRecipe:
    """Base class that records the constructor arguments, defaults included, in `recipe`.

    If a later version changes a default, a recipe on disk still builds the same object. Arguments may be numbers,
    strings, None, lists, tuples, tensors, dicts with string keys of those, and other `HasRecipe` objects.
    """

    _arguments: dict[str, Any]
    _class: type

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create the object and record the arguments."""
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:  # all but self
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            elif signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = value
        # nn.Module.__setattr__ is not usable before nn.Module.__init__; a module among the arguments must
        # not be registered as a child here anyway.
        object.__setattr__(self, "_arguments", arguments)
        object.__setattr__(self, "_class", cls)  # PyTorch's sharding changes the class of a module
        return self

    @property
    def recipe(self) -> Recipe:
        """``{"class_path", "init_args"}`` of this object, serializable as JSON.

        Raises:
            ValueError: if an argument cannot be written as plain data.
        """
        cls = self._class
        arguments = {name: _plain(value, f"{cls.__name__}({name}=...)") for name, value in self._arguments.items()}
        return {"class_path": public_path(cls), "init_args": arguments}


def _plain(value: Any, where: str) -> Any:
    """Return one constructor argument as data that JSON can hold."""
    if isinstance(value, HasRecipe):
        return value.recipe
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, where) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise ValueError(
        f"{where} is a {type(value).__name__}, which a recipe cannot hold; "
        "expected numbers, strings, lists, dicts with string keys or objects that record their own recipe"
    )


def equivalent(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes build the same object; arguments missing in an older recipe have their defaults."""
    return bool(_completed(one) == _completed(other))


def _completed(value: Any) -> Any:
    """Add all defaults to a recipe or one of its arguments; a class that cannot be imported stays unchanged."""
    if isinstance(value, list):
        return [_completed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: _completed(item) for key, item in value.items()}
    path = current_path(str(value["class_path"]))
    written = current_arguments(path, value.get("init_args") or {})
    arguments = {name: _completed(item) for name, item in written.items()}
    try:
        parameters = inspect.signature(find_class(path)).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    known = {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}
    defaults = {name: _plain(default, name) for name, default in known.items()}
    return {"class_path": path, "init_args": defaults | arguments}


def build(recipe: Recipe, known: Mapping[str, Any] | None = None) -> Any:
    """Build the object that a recipe describes; nested recipes of `known`, by `key_of`, are taken from there.

    Raises:
        ValueError: if it is not a recipe, the class does not exist or is not a `HasRecipe` class, or the arguments do
            not fit its constructor.
    """
    if not isinstance(recipe, dict) or "class_path" not in recipe:
        raise ValueError(f"a recipe is a dict with class_path and init_args, got {recipe!r}")
    path = recipe["class_path"]
    try:
        cls = find_class(str(path))
    except ValueError as error:
        raise ValueError(f"recipe: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, HasRecipe)):
        raise ValueError(
            f"recipe names {path!r}; expected a class of a network or a denoiser (a subclass of HasRecipe)"
        )
    written = recipe.get("init_args") or {}
    if not isinstance(written, dict):
        raise ValueError(f"recipe of {path}: init_args is {written!r}; expected a dict, name -> argument")
    arguments = {name: _built(each, known or {}) for name, each in current_arguments(public_path(cls), written).items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"recipe of {path} does not fit its constructor: {error}") from None


def key_of(recipe: Recipe) -> str:
    """Return the recipe as text."""
    return json.dumps(recipe, sort_keys=True)


def _built(value: Any, known: Mapping[str, Any]) -> Any:
    """Build the recipes nested in one argument."""
    if isinstance(value, dict):
        if "class_path" in value:
            return known[key] if (key := key_of(value)) in known else build(value, known)
        return {key: _built(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_built(item, known) for item in value]
    return value
