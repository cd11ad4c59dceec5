"""Folder of predicted samples: what they were drawn with, and which files are the prediction's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_guide.utils.files import atomic
from lightning_guide.utils.resume import plain_data, read_record

__all__ = ["RECORD", "SampleFolder"]

RECORD = "samples.json"


class SampleFolder:
    """Folder of the samples of one prediction at a time, with the record `samples.json`.

    The record holds the settings of the prediction, whether it has finished, and its files. Only recorded files are
    ever removed or replaced; names in it are relative to the folder.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Read the record of `path`, if there is one.

        Raises:
            ValueError: if `samples.json` is something else.
        """
        self.path, self.settings = path, plain_data(settings)
        found, content = read_record(path / RECORD) if (path / RECORD).exists() else ({}, {})
        self.same = bool(content) and found == self.settings
        self.finished = bool(content.get("finished"))
        self.files = [name for name in content.get("files", []) if _is_inside(name)]

    @classmethod
    def free(cls, path: Path, settings: dict[str, Any], names: Callable[[], Iterable[str]]) -> SampleFolder:
        """Return `path`, or PATH-2, PATH-3, ...: the first without samples of other settings or other files `names`."""
        number = 1
        while True:
            folder = cls(path if number == 1 else path.with_name(f"{path.name}-{number}"), settings)
            if folder.same or (not folder.files and folder.foreign(names()) is None):
                return folder
            number += 1

    def foreign(self, names: Iterable[str]) -> str | None:
        """Return one of the files `names` that is there and was not recorded; None if there is none."""
        if not self.path.is_dir():
            return None
        own = set(self.files)
        there = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()} - own
        return min(there & set(names), default=None) if there else None

    def begin(self, names: Sequence[str]) -> None:
        """Remove the files of a prediction with other settings, then record those to be written, `names`."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.same:  # before the record: names of both must not be taken for samples of this prediction
            self._remove(self.files)
            self.files = []
        self.files = list(dict.fromkeys([*self.files, *names]))
        self._write(finished=False)

    def finish(self, names: Iterable[str]) -> None:
        """Record the files that were written, `names`, after removing all others that were recorded."""
        written = set(names)
        self._remove(name for name in self.files if name not in written)
        self.files = sorted(written)
        self._write(finished=True)

    def _remove(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            (self.path / name).unlink(missing_ok=True)
            folders.add((self.path / name).parent)
        for folder in folders - {self.path}:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _write(self, *, finished: bool) -> None:
        content = {"settings": self.settings, "finished": finished, "files": self.files}
        with atomic(self.path / RECORD, durable=False) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _is_inside(name: str) -> bool:
    """Whether a recorded name cannot leave the folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
