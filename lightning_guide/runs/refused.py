"""Which object of a config refused its arguments: its key path, for an error of a constructor, which knows none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace

from lightning_guide.utils.places import Mistake
from lightning_guide.utils.recipe import find_class

__all__ = ["RefusedError", "find_refused"]

_UNKNOWN = object()


class RefusedError(ValueError):
    """A constructor refused its arguments; `mistake` has the key path of the object."""

    def __init__(self, said: str, mistake: Mistake) -> None:
        """`said` is the sentence about it, with the key path."""
        super().__init__(said)
        self.mistake = mistake


def find_refused(settings: Any, said: str, path: tuple[str, ...]) -> Mistake | None:
    """Return the object in parsed `settings` at the key `path` whose constructor ends in the error `said`.

    Objects inside `settings` are built again, on the meta device and from the innermost outward, until one ends so;
    those that cannot be built in this way are passed over.
    """
    found: list[Mistake] = []
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        _build(settings, path, said, found)
    return next((each for each in found if each.path != path), None)


def _build(value: Any, path: tuple[str, ...], said: str, found: list[Mistake]) -> Any:
    if isinstance(value, list):
        built = [_build(each, (*path, str(i)), said, found) for i, each in enumerate(value)]
        return _UNKNOWN if any(each is _UNKNOWN for each in built) else built
    parts = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(parts, Mapping):
        return value
    if isinstance(name := parts.get("class_path"), str):
        arguments = _build(parts.get("init_args") or {}, (*path, "init_args"), said, found)
        return _UNKNOWN if found or arguments is _UNKNOWN else _construct(name, arguments, path, said, found)
    filled = {str(key): _build(each, (*path, str(key)), said, found) for key, each in parts.items()}
    return _UNKNOWN if any(each is _UNKNOWN for each in filled.values()) else filled


def _construct(name: str, arguments: Any, path: tuple[str, ...], said: str, found: list[Mistake]) -> Any:
    try:
        return find_class(name)(**arguments)
    except Exception as error:  # others than the one: of the meta device, or of plain data that stand for an object
        if isinstance(error, ValueError) and str(error) and str(error) in said:
            found.append(Mistake(path, str(error)))
        return _UNKNOWN
