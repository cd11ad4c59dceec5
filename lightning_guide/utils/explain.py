"""Sentences about the mistakes in a config that the parser refused: file, line, key path, nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_guide.utils.mistakes import find_mistakes
from lightning_guide.utils.places import Mistake, describe, place_of

__all__ = ["explain", "first_mistake"]


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
