"""Averages that a search needs and the run has not stored, reconstructed in one pass over each run's snapshots."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_guide.guidance.base import Snapshot
from lightning_guide.runs.models import open_snapshots
from lightning_guide.runs.writing import write_averages
from lightning_guide.search.results_file import run_identity
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots.names import stored_exactly
from lightning_guide.snapshots.post_hoc import MAX_ERROR, reconstruction_shares

__all__ = ["RebuiltGuiders"]


Wanted = tuple[str | None, int | float | str, float]  # run, images, sigma_rel


class RebuiltGuiders:
    """References to averages that are not stored, and the runs in `folder` that hold them instead."""

    def __init__(self, run: str | Path, folder: str | Path, evaluations: Iterable[dict[str, Any]]) -> None:
        """Collect references from `evaluations` of `run`; points whose average cannot be rebuilt fail."""
        self._targets: dict[str, tuple[SnapshotStore, set[tuple[int, float]]]] = {}
        self._instead: dict[Wanted, tuple[str, int]] = {}
        folders: dict[str, str] = {}
        wanted = {each for evaluation in evaluations for node in _references(evaluation) if (each := _wanted(node))}
        for reference in sorted(wanted, key=str):
            source = reference[0] or str(run)
            try:
                store = open_snapshots(source)
                target = _to_rebuild(store, reference[1], reference[2])
            except (TypeError, ValueError):
                continue
            if target is None:
                continue
            if source not in folders:
                weights = json.dumps(run_identity(source))  # a run retrained in the same folder differs
                folders[source] = str(Path(folder) / hashlib.sha256(weights.encode()).hexdigest()[:8])
            self._targets.setdefault(folders[source], (store, set()))[1].add(target)
            self._instead[reference] = folders[source], target[0]

    def write(self) -> None:
        """Rebuild missing averages; to be called on one rank.

        Raises:
            ValueError: if a snapshot is damaged.
        """
        for folder, (store, targets) in self._targets.items():
            held = {(entry.images, entry.sigma_rel) for entry in SnapshotStore(f"{folder}/snapshots").entries()}
            if missing := sorted(targets - held):
                write_averages(store, missing, folder, max_error=MAX_ERROR)

    def instead(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """Copy of `evaluation` that refers to the rebuilt averages."""
        changed = copy.deepcopy(evaluation)
        for node in _references(changed):
            if (wanted := _wanted(node)) and (found := self._instead.get(wanted)):
                node["init_args"] = (node.get("init_args") or {}) | {"run": found[0], "images": found[1]}
        return changed


def _to_rebuild(store: SnapshotStore, images: int | float | str, sigma_rel: float) -> tuple[int, float] | None:
    """(images, sigma_rel) of an average that has to be rebuilt; None if it is stored.

    Raises:
        ValueError: if it cannot be rebuilt.
    """
    count, entries = store.resolve_images(images), store.entries()
    if stored_exactly(entries, count, sigma_rel):
        return None
    reconstruction_shares([entry for entry in entries if entry.sigma_rel > 0], count, sigma_rel, MAX_ERROR)
    return count, round(float(sigma_rel), 4)


def _references(node: Any) -> Iterator[dict[str, Any]]:
    """All snapshots that plain data refer to."""
    if isinstance(node, dict):
        if str(node.get("class_path")).rpartition(".")[2] == "Snapshot":
            yield node
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _wanted(node: dict[str, Any]) -> Wanted | None:
    """Average that a node refers to; None where it is invalid, which drawing from its point reports."""
    try:
        snapshot = Snapshot(**(node.get("init_args") or {}))  # values on an axis may leave out defaults
        wanted = snapshot.run, snapshot.images, snapshot.sigma_rel
        hash(wanted)
    except (TypeError, ValueError):
        return None
    return wanted
