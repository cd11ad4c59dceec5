"""Sample grids of a run on its page: the newest of each evaluation, and those of the same seeds compared."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_guide.report.metrics_file import read_text
from lightning_guide.report.page import Page
from lightning_guide.report.results import in_order
from lightning_guide.utils.terminal import counted

__all__ = ["UNSAFE", "add_grids"]


UNSAFE = r"[^\w.=+-]+"  # characters of an evaluation's name that are replaced in names of files


_GRID = re.compile(r"(?P<stage>[a-z]+)-(?P<images>\d+)-(?P<name>.+)\.png")


# Settings of an evaluation that decide noise and label of its samples, with their defaults.
_DRAWN = {"seed": 0, "first_index": 0, "labels": "balanced", "num_classes": None, "noise": "host"}


@dataclass(frozen=True)
class _Grid:
    """Newest grid of one evaluation: its id on the page, its file, what is shown in it, and its content."""

    place: str
    name: str
    path: Path
    caption: str
    png: bytes

    @property
    def size(self) -> tuple[int, ...]:
        """Width and height in pixels, as the header of the file says; () if it has none."""
        return struct.unpack(">II", self.png[16:24]) if len(self.png) >= 24 else ()


def add_grids(page: Page, run: Path, *, order: Sequence[str], evaluations: Mapping[str, Any]) -> None:
    """Add the newest grid of each evaluation in `order`, and a comparison of those of the same seeds and labels.

    `evaluations` are the settings in the configs of the run: name -> settings.
    """
    grids = _newest(run, [re.sub(UNSAFE, "_", name) for name in order])
    if not grids:
        return
    page.heading("Samples")
    page.images([(grid.png, grid.caption) for grid in grids], scaled=True, ids=[grid.place for grid in grids])
    listed = {grid.path.with_suffix(".txt"): grid.caption for grid in grids}
    texts = {read_text(path): caption for path, caption in reversed(listed.items()) if path.is_file()}
    for text, caption in reversed(texts.items()):  # each list once, under the first image that it belongs to
        page.folded(f"prompts of {caption}, row by row", text)
    if paired := _paired(grids, evaluations):
        page.heading("Comparison")
        page.paragraph("The same seeds and labels in both; drag the boundary, or move it with the arrow keys.")
        for group in paired:
            page.comparison([(grid.place, grid.caption) for grid in group])


def _newest(run: Path, order: Sequence[str]) -> list[_Grid]:
    """Return the newest grid of each evaluation."""
    newest: dict[str, tuple[float, str, Path]] = {}
    for path in run.glob("grids/*.png"):
        if parsed := _GRID.fullmatch(path.name):
            after = f" after {counted(int(parsed['images']), 'image')}" if int(parsed["images"]) else ""
            entry = (path.stat().st_mtime, f"{parsed['name']} ({parsed['stage']}{after})", path)
            newest[parsed["name"]] = max(entry, newest.get(parsed["name"], entry))
    chosen = [(name, newest[name]) for name in in_order(sorted(newest), order)]
    return [
        _Grid(f"samples-{i}", name, path, caption, path.read_bytes())
        for i, (name, (_, caption, path)) in enumerate(chosen)
    ]


def _paired(grids: Sequence[_Grid], evaluations: Mapping[str, Any]) -> list[list[_Grid]]:
    """Return groups of at least two grids of equal size whose samples start from the same noise and labels."""
    settings = {re.sub(UNSAFE, "_", name): each for name, each in evaluations.items() if isinstance(each, Mapping)}
    groups: dict[str, list[_Grid]] = {}
    for grid in grids:
        if grid.name in settings:
            drawn = {key: settings[grid.name].get(key, default) for key, default in _DRAWN.items()}
            groups.setdefault(f"{drawn} {grid.size}", []).append(grid)
    return [group for group in groups.values() if len(group) > 1]
