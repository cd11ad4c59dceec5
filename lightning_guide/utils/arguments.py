"""Constructor arguments of another kind than annotated, refused in one sentence: Python itself checks none."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from lightning_guide.utils.recipe import HasRecipe
from lightning_guide.utils.scalars import SCALARS

__all__ = ["CheckedArguments"]


class CheckedArguments(HasRecipe):
    """Base class that refuses constructor arguments of other kinds than annotated.

    Numbers are whatever converts to one, lists whatever has a length and items. Numbers, text, lists and objects that
    record their recipe are checked, and unions of those; whether a number is whole or in range is up to the class.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create the object.

        Raises:
            ValueError: naming the first argument of another kind.
        """
        self = super().__new__(cls, *args, **kwargs)
        kinds = _kinds(cls.__init__)
        for name, value in self._arguments.items():
            if not _fits(value, kind := kinds.get(name, Any)):
                raise ValueError(f"{cls.__name__}: {name} is {_shown(value)}; expected {_named(kind)}")
        return self


@cache
def _kinds(constructor: Callable[..., None]) -> dict[str, Any]:
    """Return the annotations of a constructor; none if they name what cannot be found, as a class inside a function."""
    try:
        return get_type_hints(constructor)
    except NameError:
        return {}


def _fits(value: Any, kind: Any) -> bool:
    """Return whether `value` is of the annotated `kind`; of kinds that are not checked everything is."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if get_origin(kind) in (Sequence, list, tuple):
        sized = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str)
        return sized and all(any(_fits(each, one) for one in inner if one is not ...) for each in value)
    if kind in (int, float):
        return hasattr(value, "__float__")
    checked = kind in (str, NoneType) or isinstance(kind, type) and issubclass(kind, HasRecipe)
    return not checked or isinstance(value, kind)


def _named(kind: Any) -> str:
    """Return the name of a kind, without None."""
    inner = [each for each in get_args(kind) if each not in (NoneType, ...)]
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_named, inner)))
    if get_origin(kind) in (Sequence, list, tuple):
        return f"a list, each item {' or '.join(dict.fromkeys(map(_named, inner)))}"
    return SCALARS.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _shown(value: Any) -> str:
    """Return short text of an argument."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}" if isinstance(value, HasRecipe | nn.Module) else reprlib.repr(value)
