"""Values of arguments whose annotation is a number, a truth value, text or null: what can be none of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lightning_guide.utils.scalars import SCALARS, is_no_number

__all__ = ["option_values", "wrong_value"]

_KINDS = {kind.__name__.removesuffix("Type"): kind for kind in SCALARS}


def wrong_value(value: Any, annotation: str) -> str:
    """Return a sentence if `value`, plain data, is for certain not of an annotation such as ``int | None``, else "".

    Other annotations, and what the parser may convert, are left to it.

    Examples:
        >>> wrong_value("often", "float | None")
        "is 'often'; expected a number or null"
        >>> wrong_value("1e-3", "float"), wrong_value("often", "float | str"), wrong_value("x", "Sampler")
        ('', '', '')
    """
    names = [each.strip() for each in annotation.split("|")]
    if not all(name in _KINDS for name in names):
        return ""
    kinds = [_KINDS[name] for name in names]
    if isinstance(value, Mapping | list) or (isinstance(value, str) and is_no_number(value, kinds)):
        return f"is {value!r:.80}; expected {' or '.join(SCALARS[kind] for kind in kinds)}"
    return ""


def option_values(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a command line with their values as plain data, None for one without."""
    for word, after in itertools.pairwise([*words, ""]):
        option, equals, text = word.partition("=")
        if word.startswith("--"):
            try:
                yield option, yaml.safe_load(text if equals else after)
            except yaml.YAMLError:  # the parser may read it as text
                yield option, None
