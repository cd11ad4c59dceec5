"""Index of a snapshot folder, `index.json`, with which complete files are found at once and lost ones are noticed.

The index is a cache: a file counts as soon as it has its final name, and without an index all files are found again.
Listed files are complete and are not opened; listed files that do not exist were lost.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path

from lightning_guide.snapshots.file import read_metadata
from lightning_guide.snapshots.names import Entry, SnapshotMissing, parse_file_names
from lightning_guide.utils.files import atomic, remove_temporary

__all__ = ["SnapshotIndex"]


_NAME = "index.json"


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

    def write(self, *, without: Collection[str] = ()) -> None:
        """Write the index: present files and files listed before, except the names `without`."""
        names = (self.listed() | {entry.path.name for entry in self.entries()}) - set(without)
        entries = parse_file_names(self.folder, names)
        rows = [{"images": e.images, "sigma_rel": e.sigma_rel, "file": e.path.name} for e in entries]
        with atomic(self.folder / _NAME, durable=False) as temporary:
            temporary.write_text(json.dumps({"snapshots": rows}), encoding="utf-8")

    def remove_stale(self) -> None:
        """Remove the temporary files of a writer that was killed."""
        remove_temporary(self.folder, _NAME)
        remove_temporary(self.folder, "images-*.safetensors")

    def check_not_lost(self, images: int, sigma_rel: float) -> None:
        """Refuse a snapshot that the index lists and whose file is gone.

        Raises:
            SnapshotMissing: naming the file.
        """
        for entry in parse_file_names(self.folder, self.listed()):
            if (entry.images, entry.sigma_rel) == (images, sigma_rel) and not entry.path.exists():
                raise SnapshotMissing(
                    f"{entry.path} was written once and is gone; put it back, or delete {_NAME} beside it to "
                    "accept the loss",
                    not_yet=False,
                )


def _is_whole(entry: Entry) -> bool:
    """Whether an unlisted file has all its bytes; warn if not."""
    try:
        read_metadata(entry.path)
    except ValueError as error:
        warnings.warn(f"left out of the snapshots: {error}", stacklevel=4)
        return False
    return True
