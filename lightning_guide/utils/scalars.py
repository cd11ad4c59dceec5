"""Numbers, truth values, text and null in plain data: what they are called, and words that are no number."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Collection
from typing import Any

__all__ = ["SCALARS", "check_whole", "is_no_number"]

SCALARS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
"""Type -> its name in plain words."""


def is_no_number(text: str, kinds: Collection[type]) -> bool:
    """Return whether `text` is a word in which the parser finds none of `kinds`, all of them int, float or None's type.

    Infinity and "not a number" are numbers, but no whole ones. Other text, as ``1e-3``, is left to the parser.

    Examples:
        >>> [is_no_number(text, [float]) for text in ("often", "nan", "1e-3")]
        [True, False, False]
        >>> is_no_number("inf", [int])
        True
    """
    number = float in kinds and text.lower() in ("inf", "infinity", "nan")
    numeric = all(kind in (int, float, type(None)) for kind in kinds)
    return numeric and text.isalpha() and not number and text.lower() not in ("null", "true", "false")


def check_whole(value: Any, name: str, *, least: int, most: int | None = None) -> int:
    """Return a whole number of any library from `least` on, at `most`; `name` begins the sentence that refuses another.

    Raises:
        ValueError: if it is none, such as 2.0 or true.

    Examples:
        >>> check_whole(2.5, "iterations of MMPS", least=1)
        Traceback (most recent call last):
        ValueError: iterations of MMPS is 2.5; expected a whole number from 1 on
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        shown = " ".join(reprlib.repr(value).split())
        raise ValueError(f"{name} is {shown}; expected a whole number from {least} {f'to {most}' if most else 'on'}")
    return number
