"""Class names that are recorded beside shards, which give the numbers in them their meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datamodules.storage.labels import are_numbers, shown
from lightning_guide.utils.files import parse_json

__all__ = ["check_same_classes", "other_classes", "recorded_classes", "shard_classes"]


_SHARD = re.compile(r"(.+)-\d{5,}\.tar")
_LATENTS = "latents.json"


def shard_classes(paths: Iterable[Path]) -> list[str] | None:
    """Return the class names recorded for shards, in NAME.json or latents.json beside them; None if there are none.

    Raises:
        ValueError: naming both records, if two differ; if a record is damaged.
    """
    records: set[Path] = set()
    for path in paths:
        own = _SHARD.fullmatch(path.name)
        records |= {path.with_name(f"{own[1]}.json")} if own else set()
        records.add(path.with_name(_LATENTS))
    return _agreed({str(record): _classes(record) for record in sorted(records)})


def recorded_classes(train: Sequence[Path], heldout: Sequence[Path], num_classes: int) -> list[str] | None:
    """Return the class names recorded for the shards `train`; None if there are none, or `num_classes` is 0.

    Raises:
        ValueError: unless they are `num_classes`, and those recorded for the shards `heldout`.
    """
    if num_classes < 1:
        return None
    classes, others = shard_classes(train), shard_classes(heldout)
    if classes is None:
        return None
    if len(classes) != num_classes:
        raise ValueError(
            f"the shards {train[0]}, ... have {len(classes)} classes ({shown(classes)}); num_classes is {num_classes}"
        )
    if others is not None:
        check_same_classes(f"the record of {heldout[0]}", others, f"that of {train[0]}", classes)
    return classes


def other_classes(folder: Path, name: str) -> list[str] | None:
    """Return the class names recorded in `folder` for shards of other names than `name`.

    Raises:
        ValueError: as `shard_classes`.
    """
    others = sorted({own[1] for path in folder.glob("*.tar") if (own := _SHARD.fullmatch(path.name))} - {name})
    return _agreed({str(folder / f"{each}.json"): _classes(folder / f"{each}.json") for each in others})


def check_same_classes(place: str, classes: Sequence[str], other: str, expected: Sequence[str]) -> None:
    """Refuse classes of two numberings; without names, one may have more than the other.

    Raises:
        ValueError: naming both places and their classes.
    """
    if list(classes) != list(expected) and not (are_numbers(classes) and are_numbers(expected)):
        raise ValueError(
            f"{place} numbers the classes {shown(list(classes))}, {other} {shown(list(expected))}; expected one "
            "numbering (convert both to one folder, those with all classes first)"
        )


def _agreed(found: dict[str, list[str] | None]) -> list[str] | None:
    """Return the longest of lists that agree."""
    recorded = {place: classes for place, classes in found.items() if classes is not None}
    if not recorded:
        return None
    place = max(recorded, key=lambda each: len(recorded[each]))
    for other, classes in recorded.items():
        check_same_classes(other, classes, place, recorded[place])
    return recorded[place]


def _classes(record: Path) -> list[str] | None:
    """Return the class names in a record; None without a record or classes."""
    if not record.is_file():
        return None
    content: Any = parse_json(record.read_bytes(), record)
    classes = content.get("classes") if isinstance(content, dict) else None
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
        raise ValueError(f"{record} is damaged (its classes are {shown(classes)}); expected a list of names")
    return classes
