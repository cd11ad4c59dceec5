"""The records of finished rounds on disk: `rounds/history.jsonl` in the folder of a run, one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_guide.atomic_file import atomic

__all__ = ["append_record", "read_records", "write_records"]

Record = dict[str, float]


def append_record(run: str | Path, record: Record, *, first: bool) -> None:
    """Adds one line; the `first` record of a run begins the file anew."""
    path = _path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if first else "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(run: str | Path, rounds: int) -> list[Record]:
    """The records of the first `rounds` rounds; those of rounds that will be drawn again are left out."""
    path = _path(run)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[:rounds]]


def write_records(run: str | Path, records: Sequence[Record]) -> None:
    """Writes all records at once."""
    path = _path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _path(run: str | Path) -> Path:
    return Path(run) / "rounds" / "history.jsonl"
