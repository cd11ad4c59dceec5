"""Resumable results file of a search."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from lightning_guide.runs.stores import open_snapshots
from lightning_guide.utils.files import atomic

__all__ = ["ResultsFile", "named_runs", "run_identity", "runs_in"]


class ResultsFile:
    """JSON file `{"search": settings, ...}` that is only resumed with the same settings."""

    def __init__(self, path: str | Path, search: dict[str, Any]) -> None:
        """Read the file if there is one; `search` holds everything that its contents depend on.

        The file of another search is replaced if all of its points failed.

        Raises:
            ValueError: if the file has results of another search, naming what differs, or cannot be read.
        """
        self.path, self.search = Path(path), json.loads(_strict(search))
        self.content: dict[str, Any] = {}
        if not self.path.exists():
            return
        try:
            self.content = json.loads(self.path.read_text(encoding="utf-8"))
            written = dict(self.content.pop("search"))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{self.path} is not a results file of a search; move it away") from None
        differ = [key for key in self.search | written if self.search.get(key) != written.get(key)]
        if differ and _found_something(self.content):
            raise ValueError(
                f"{self.path} belongs to another search: {differ[0]} was {_short(written.get(differ[0]))}, now it is "
                f"{_short(self.search.get(differ[0]))}; choose another folder with --out"
            )
        if differ:
            self.content = {}

    def write(self) -> None:
        """Write the file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as temporary:
            temporary.write_text(_strict({"search": self.search} | self.content, indent=1) + "\n", encoding="utf-8")


def run_identity(run: str | Path) -> dict[str, Any]:
    """Identity of a run: its newest weights, so that a retrained run differs.

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
            with entry.path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
    return {"folder": str(Path(run).resolve()), "images": entries[-1].images, "weights": digests}


def runs_in(settings: Any) -> set[str]:
    """The folders of runs that plain data name as `run`."""
    if isinstance(settings, dict):
        own = {settings["run"]} if isinstance(settings.get("run"), str) else set()
        return own.union(*map(runs_in, settings.values()))
    return set().union(*map(runs_in, settings)) if isinstance(settings, list | tuple) else set()


def named_runs(settings: Any) -> dict[str, Any]:
    """`run_identity` of each run that plain data name, None where there is no run: folder -> identity."""
    found: dict[str, Any] = {}
    for run in sorted(runs_in(settings)):
        try:
            found[run] = run_identity(run)
        except ValueError:
            found[run] = None
    return found


def _found_something(content: dict[str, Any]) -> bool:
    """Whether any point, apart from no guidance, has been scored."""
    points = content.get("points")
    return bool(content) if points is None else any("values" in point and point["axes"] for point in points.values())


def _strict(content: Any, indent: int | None = None) -> str:
    """JSON with null for numbers that are not finite."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False, default=str)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def _short(value: Any) -> str:
    written = json.dumps(value)
    return written if len(written) <= 100 else written[:97] + "..."
