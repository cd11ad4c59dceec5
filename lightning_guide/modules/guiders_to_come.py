"""Guiders that a run is to find among its own snapshots: said at its beginning if none will be stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance.references import Snapshot
from lightning_guide.modules.models import LiveAverages
from lightning_guide.snapshots.names import Entry, SnapshotMissing, available, parse_images, stored_exactly, stored_near
from lightning_guide.snapshots.post_hoc import MAX_ERROR, shares

__all__ = ["warn_if_nothing_stores", "warn_of_guiders_not_to_come"]


def warn_of_guiders_not_to_come(
    evaluations: Mapping[str, Evaluation], entries: Sequence[Entry], planned_images: int
) -> None:
    """Names the evaluations with a `Snapshot` of this run that `entries`, all that it will store, do not make up."""
    for name, evaluation in evaluations.items():
        for part in evaluation.guidance.modules():
            if isinstance(part, Snapshot) and part.run is None:
                try:
                    _check(part, entries, planned_images)
                except ValueError as missing:
                    rank_zero_warn(f"evaluation {name!r} will find no guider when its time has come: {missing}")


def warn_if_nothing_stores(evaluations: Mapping[str, Evaluation], trainer: Any, planned_images: int | None) -> None:
    """The same for a run in which no callback keeps averages; those that do speak for themselves."""
    stores = any(isinstance(each, LiveAverages) for each in trainer.callbacks)
    stored = (Path(trainer.default_root_dir) / "snapshots").is_dir()
    if planned_images and trainer.enable_validation and not (stores or stored or trainer.fast_dev_run):
        warn_of_guiders_not_to_come(evaluations, [], planned_images)


def _check(wanted: Snapshot, entries: Sequence[Entry], planned_images: int) -> None:
    """As `SnapshotStore.guider` would.

    Raises:
        SnapshotMissing: if the snapshot will not be there.
        ValueError: if no run could have it.
    """
    asked = parse_images(wanted.images)
    count = asked if isinstance(asked, int) else stored_near(entries, math.floor(asked * planned_images))
    if count is None:
        raise SnapshotMissing(
            f"none is planned near images={wanted.images} of {planned_images} (callbacks.EarlySnapshots plans them); "
            f"{available(entries)}",
            not_yet=False,
        )
    if stored_exactly(entries, count, wanted.sigma_rel) or count > planned_images:
        return
    if wanted.sigma_rel == 0:
        raise SnapshotMissing(f"raw weights (sigma_rel=0) are not stored; {available(entries)}", not_yet=False)
    shares(entries, count, wanted.sigma_rel, MAX_ERROR)
