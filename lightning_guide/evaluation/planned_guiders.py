"""Check before training that the guiders of evaluations will be stored by this run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.utilities import rank_zero_warn

from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance.base import Snapshot
from lightning_guide.snapshots.names import Entry, SnapshotMissing, available, parse_images, stored_exactly, stored_near
from lightning_guide.snapshots.post_hoc import MAX_ERROR, reconstruction_shares

__all__ = ["Storing", "warn_of_guiders_not_to_come"]


@runtime_checkable
class Storing(Protocol):
    """A callback that stores averages among the snapshots of the run."""

    def to_come(self, planned_images: int, images_per_step: int) -> list[Entry]:
        """Return all entries that it stores in a run of that length."""


def warn_of_guiders_not_to_come(
    evaluations: Mapping[str, Evaluation],
    trainer: Any,
    *,
    images_seen: int,
    planned_images: int | None,
    images_per_step: int,
) -> None:
    """Warn of evaluations with a `Snapshot` of this run that none of its callbacks will store.

    A resumed run is checked only if no callback stores snapshots.
    """
    if not planned_images or not trainer.enable_validation or trainer.fast_dev_run:
        return
    storing = [each for each in trainer.callbacks if isinstance(each, Storing)]
    folder = Path(trainer.default_root_dir) / "snapshots"
    if images_seen if storing else folder.is_dir():
        return
    entries = sorted(entry for each in storing for entry in each.to_come(planned_images, images_per_step))
    for name, evaluation in evaluations.items():
        for part in evaluation.guidance.modules():
            if isinstance(part, Snapshot) and part.run is None:
                try:
                    _check(part, entries, planned_images)
                except ValueError as missing:
                    rank_zero_warn(f"evaluation {name!r} will find no guider: {missing}")


def _check(guider: Snapshot, entries: Sequence[Entry], planned_images: int) -> None:
    """Raise the error of `SnapshotStore.guider` if the planned `entries` do not contain `guider`."""
    images = parse_images(guider.images)
    count = images if isinstance(images, int) else stored_near(entries, math.floor(images * planned_images))
    if count is None:
        raise SnapshotMissing(
            f"none is planned near images={guider.images} of {planned_images} (callbacks.EarlySnapshots plans them); "
            f"{available(entries)}",
            not_yet=False,
        )
    if stored_exactly(entries, count, guider.sigma_rel) or count > planned_images:
        return
    if guider.sigma_rel == 0:
        raise SnapshotMissing(f"raw weights (sigma_rel=0) are not stored; {available(entries)}", not_yet=False)
    reconstruction_shares(entries, count, guider.sigma_rel, MAX_ERROR)
