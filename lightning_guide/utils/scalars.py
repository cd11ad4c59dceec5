"""Numbers, truth values, text and null in plain data: what they are called, and words that are no number."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["SCALARS", "check_whole", "is_no_number", "is_whole"]

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


def is_whole(value: Any, *, least: int) -> bool:
    """Return whether `value` is a whole number of any library, from `least` on; true and false are none.

    Examples:
        >>> [is_whole(value, least=1) for value in (2, 0, 2.0, True, "2")]
        [True, False, False, False, False]
    """
    return not isinstance(value, bool) and hasattr(value, "__index__") and bool(value >= least)


def check_whole(value: Any, what: str, *, least: int) -> int:
    """Return a whole number of any library, from `least` on; `what` begins the sentence that refuses another.

    Raises:
        ValueError: if it is none.

    Examples:
        >>> check_whole(2.5, "MMPS needs iterations", least=1)
        Traceback (most recent call last):
        ValueError: MMPS needs iterations as a whole number from 1 on, got 2.5
    """
    if not is_whole(value, least=least):
        raise ValueError(f"{what} as a whole number from {least} on, got {value!r}")
    return int(value)
