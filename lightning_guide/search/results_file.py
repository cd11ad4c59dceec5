"""Resumable results file of a search."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_guide.runs.models import open_snapshots
from lightning_guide.snapshots.file import read_checksum
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.resume import ResumableFolder, plain_data

__all__ = ["ResultsFile", "named_runs", "run_identity", "runs_in", "with_identities"]


class ResultsFile:
    """JSON file `{"search": settings, ...}` that is only resumed with the same settings."""

    def __init__(self, path: str | Path, search: dict[str, Any]) -> None:
        """Read the file if there is one; `search` holds everything that its contents depend on.

        The file of another search is replaced if all of its points failed.

        Raises:
            ValueError: if the file has results of another search, naming what differs, or cannot be read.
        """
        self.path = Path(path)
        alternative = "another folder with --out"
        self._folder = ResumableFolder(path, search, results=_found_something, key="search", alternative=alternative)
        self.content = self._folder.read()
        self._points: dict[str, str] = {}  # JSON of those that are written

    def lock(self) -> FolderLock:
        """Return the lock of the file, for the one process that writes it."""
        return self._folder.lock()

    def write(self) -> None:
        """Write the file atomically."""
        self._folder.write(self.content)

    def write_point(self, name: str) -> None:
        """Write the file after one of its `points` was found; the text of the others is that of the last time."""
        points = self.content["points"]
        for each in points:
            if each == name or each not in self._points:
                self._points[each] = json.dumps(plain_data(points[each]))
        rest = {key: value for key, value in self.content.items() if key != "points"}
        lines = ",\n".join(f"  {json.dumps(each)}: {self._points[each]}" for each in points)
        self._folder.write(rest, last=f'"points": {{\n{lines}\n }}')


def run_identity(run: str | Path) -> dict[str, Any]:
    """Identity of a run: its newest weights, so that a retrained run differs, and one that was moved does not.

    Raises:
        ValueError: if it has none.
    """
    store = open_snapshots(run)
    entries = store.entries()
    if not entries:
        raise ValueError(f"run {str(run)!r} has no snapshots yet in {store.folder}")
    digests = []
    for entry in entries:
        if entry.images == entries[-1].images:
            digests.append(read_checksum(entry.path)[:16])
    return {"images": entries[-1].images, "weights": digests}


def runs_in(settings: Any) -> set[str]:
    """The folders of runs that plain data name as `run`."""
    if isinstance(settings, dict):
        own = {settings["run"]} if isinstance(settings.get("run"), str) else set()
        return own.union(*map(runs_in, settings.values()))
    return set().union(*map(runs_in, settings)) if isinstance(settings, list | tuple) else set()


def named_runs(settings: Any) -> dict[str, Any]:
    """`run_identity` of each run that plain data name, where there is one: folder -> identity."""
    found: dict[str, Any] = {}
    for run in sorted(runs_in(settings)):
        with suppress(ValueError):
            found[run] = run_identity(run)
    return found


def with_identities(settings: Any, runs: dict[str, Any]) -> Any:
    """Return plain data in which the identities of `runs` replace their folders, so that runs may be moved."""
    if isinstance(settings, dict):
        found = {key: with_identities(value, runs) for key, value in settings.items()}
        return found | ({"run": runs.get(found["run"], found["run"])} if isinstance(found.get("run"), str) else {})
    return [with_identities(value, runs) for value in settings] if isinstance(settings, list | tuple) else settings


def _found_something(content: dict[str, Any]) -> bool:
    """Whether any point, apart from no guidance, has been scored."""
    points = content.get("points")
    return bool(content) if points is None else any("values" in point and point["axes"] for point in points.values())
