"""Sentences about the mistakes in a config that the parser refused: file, line, key path, nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_guide.utils.mistakes import find_mistakes
from lightning_guide.utils.places import Mistake, describe, list_mistakes, place_of

__all__ = ["explain", "sure_mistakes"]


def explain(
    message: str, value: Any, kind: Any, *, at: Sequence[str] = (), files: Iterable[str | Path] = (), where: str = ""
) -> str:
    """Return a sentence about each mistake in `value`, or `message` of the parser if none is found.

    Args:
        message: of the parser, in one sentence.
        value: plain data that should be of `kind`.
        kind: annotation, or `Keys`.
        at: key path of `value` in `files`.
        files: configs that were merged, later ones over earlier ones.
        where: place that is named if no file holds the key.
    """
    files = list(files)
    found = sure_mistakes(message, value, kind, tuple(at))
    return list_mistakes([describe(each, place_of(each.path, files) or where) for each in found] or [message])


def sure_mistakes(message: str, value: Any, kind: Any, path: tuple[str, ...] = ()) -> list[Mistake]:
    """Return the mistakes that are certain; if there are none, the first whose key `message` of the parser names."""
    found = list(find_mistakes(value, kind, path))
    named = (each for each in found if each.path and each.path[-1] in message)
    return [each for each in found if each.certain] or [each for each in [next(named, None)] if each is not None]
