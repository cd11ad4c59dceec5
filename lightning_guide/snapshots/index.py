"""Index of a snapshot folder, `index.json`, with which complete files are found at once and lost ones are noticed.

The index is a cache: a file counts as soon as it has its final name, and without an index all files are found again.
Listed files are complete and are not opened; listed files that do not exist were lost.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection
from pathlib import Path

from lightning_guide.snapshots.file import read_metadata
from lightning_guide.snapshots.names import Entry, SnapshotMissing, parse_file_names
from lightning_guide.utils.files import atomic

__all__ = ["SnapshotIndex"]


_NAME = "index.json"
_BEGIN = '{"snapshots": ['
_KEY = len('{"images": ')


class SnapshotIndex:
    """The snapshots in `folder`, which may not exist yet. One process writes, any number may read at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Entry]:
        """All whole snapshots in the folder, by images, then sigma_rel; a file cut off by a copy only warns."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        listed = self.listed()
        return [e for e in parse_file_names(self.folder, names) if e.path.name in listed or _is_whole(e)]

    def listed(self) -> set[str]:
        """File names that the index lists; none if it is missing or damaged."""
        try:
            rows = json.loads((self.folder / _NAME).read_text(encoding="utf-8"))["snapshots"]
            return {str(row["file"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def add(self, entry: Entry) -> None:
        """Add a complete file, at the end of the index as it was written; a missing or damaged one is written anew.

        No other file is looked at, so that the time of saving does not grow with the number of snapshots.
        """
        path = self.folder / _NAME
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not (text.startswith(_BEGIN + _row(entry)[:_KEY]) and text.endswith("}]}")):
            self.write()
        elif f'"{entry.path.name}"' not in text:
            self._replace(f"{text[:-2]}, {_row(entry)}]}}")

    def write(self, *, without: Collection[str] = ()) -> None:
        """Write the index: present files and files listed before, except the names `without`."""
        names = (self.listed() | {entry.path.name for entry in self.entries()}) - set(without)
        self._replace(f"{_BEGIN}{', '.join(map(_row, parse_file_names(self.folder, names)))}]}}")

    def _replace(self, text: str) -> None:
        with atomic(self.folder / _NAME, durable=False) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def remove_stale(self) -> None:
        """Remove the temporary files of a writer that was killed, in one pass over the names of the folder."""
        for name in os.listdir(self.folder) if self.folder.is_dir() else ():
            if name.endswith(".tmp") and name.startswith((f".{_NAME}", ".images-")):
                (self.folder / name).unlink(missing_ok=True)

    def check_not_lost(self, images: int, sigma_rel: float) -> None:
        """Refuse a snapshot that the index lists and whose file is gone.

        Raises:
            SnapshotMissing: naming the file.
        """
        for entry in parse_file_names(self.folder, self.listed()):
            if (entry.images, entry.sigma_rel) == (images, sigma_rel) and not entry.path.exists():
                raise SnapshotMissing(
                    f"{entry.path} was written once and is gone; put it back, or delete {_NAME} next to it to "
                    "accept the loss",
                    not_yet=False,
                )


def _row(entry: Entry) -> str:
    """Return the line of the index for a file."""
    return json.dumps({"images": entry.images, "sigma_rel": entry.sigma_rel, "file": entry.path.name})


def _is_whole(entry: Entry) -> bool:
    """Whether an unlisted file has all its bytes; warn if not."""
    try:
        read_metadata(entry.path)
    except ValueError as error:
        warnings.warn(f"left out of the snapshots: {error}", stacklevel=4)
        return False
    return True
