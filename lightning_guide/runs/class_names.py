"""Names of the classes that a run was trained on, in the order of their labels: `classes.json` in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from lightning_guide.utils.files import atomic, parse_json

__all__ = ["check_class_names", "read_class_names", "write_class_names"]


_FILE = "classes.json"


def read_class_names(run: str | Path) -> list[str] | None:
    """Return the class names of `run`; None if it recorded none.

    Raises:
        ValueError: if their file is damaged.
    """
    path = Path(run) / _FILE
    if not path.is_file():
        return None
    names = parse_json(path.read_bytes(), path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is damaged; expected a list of class names")
    return names


def write_class_names(run: str | Path, names: Sequence[str]) -> None:
    """Record the class names of `run`, unless it did."""
    path = Path(run) / _FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(list(names), indent=1) + "\n", encoding="utf-8")


def check_class_names(names: Sequence[str] | None, expected: Sequence[str] | None, *, of: str) -> None:
    """Refuse data whose labels mean other classes than those `of` a model; None is unknown.

    Raises:
        ValueError: naming the first label whose class differs.
    """
    if names is None or expected is None or list(names) == list(expected):
        return
    pairs = list(zip_longest(names, expected))
    label = next(label for label, (own, other) in enumerate(pairs) if own != other)
    own, other = ("none" if name is None else repr(name) for name in pairs[label])
    raise ValueError(
        f"label {label} of the data is the class {own}, but of {of} {other}; expected the same classes in the same "
        f"order, here the {len(expected)}: {', '.join(expected[:10])}{', ...' if len(expected) > 10 else ''}"
    )
