"""Check before training that the guiders of evaluations are stored, or will be stored by this run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from torch import nn

from lightning_guide.guidance.base import Snapshot
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots.names import Entry, SnapshotMissing, available, named_count, parse_images, stored_exactly
from lightning_guide.snapshots.post_hoc import MAX_ERROR, reconstruction_shares

__all__ = ["PlannedSnapshots", "Storing"]


@runtime_checkable
class Storing(Protocol):
    """A callback that stores averages among the snapshots of the run."""

    def to_come(self, last_images: int, images_per_step: int, *, images: int = 0, step: int = 0) -> list[Entry]:
        """Return all entries that it stores in a run at `step`, after `images`, until `last_images`."""


@dataclass(frozen=True)
class PlannedSnapshots:
    """Snapshots that a run has stored, and those that its callbacks will store.

    Attributes:
        store: of the run.
        entries: both, sorted.
        planned_images: planned length of the run, of which fractions are taken; None without a plan.
        last_images: images at the end of this fit, after which a longer one would store more; infinity if no callback
            stores anything, None without an end.
    """

    store: SnapshotStore
    entries: Sequence[Entry]
    planned_images: int | None
    last_images: float | None

    @classmethod
    def of(cls, trainer: Any, *, images_seen: int, planned_images: int | None, images_per_step: int) -> Self:
        """Return those of a fit that begins after `images_seen`; its callbacks have registered their times."""
        store, step = SnapshotStore(Path(trainer.default_root_dir) / "snapshots"), trainer.global_step
        storing = [each for each in trainer.callbacks if isinstance(each, Storing)]
        last = images_seen + (trainer.max_steps - step) * images_per_step if trainer.max_steps > 0 else None
        now = {"images": images_seen, "step": step}
        later = [entry for each in storing if last for entry in each.to_come(last, images_per_step, **now)]
        entries = sorted([*store.entries(), *later])
        return cls(store, entries, planned_images, last if storing else math.inf)

    def missing(self, guidance: nn.Module) -> Iterator[str]:
        """Yield one sentence for each `Snapshot` of this run in `guidance` that is not stored and never will be."""
        for part in self._own(guidance):
            try:
                self._check(part)
            except ValueError as missing:
                yield str(missing)

    def beyond(self, guidance: nn.Module) -> Iterator[str]:
        """Yield one sentence for each `Snapshot` that only a longer run can store."""
        for part in self._own(guidance):
            if self._is_beyond(part.images):
                yield f"the snapshot of images={part.images} lies beyond the end of this run, {self.last_images:.0f}"

    def _own(self, guidance: nn.Module) -> Iterator[Snapshot]:
        """Yield the references of `guidance` to this run."""
        run = self.store.folder.parent.resolve()
        for part in guidance.modules():
            if isinstance(part, Snapshot) and (part.run is None or Path(part.run).expanduser().resolve() == run):
                yield part

    def _is_beyond(self, images: int | float | str) -> bool:
        try:
            count = parse_images(images)
        except ValueError:
            return False
        return isinstance(count, int) and self.last_images is not None and count > self.last_images

    def _check(self, guider: Snapshot) -> None:
        """Raise the error that `SnapshotStore.guider` will raise."""
        images, entries = parse_images(guider.images), self.entries
        if self.last_images is None and isinstance(images, int) or self._is_beyond(guider.images):
            return
        if not isinstance(images, int) and self.planned_images is None:
            raise SnapshotMissing(
                f"images={guider.images} is a fraction of a run without a planned length; set trainer.max_steps, or "
                "give a count of images",
                not_yet=False,
            )
        count = named_count(guider.images, self.planned_images, entries, self._since)
        if count is None and not isinstance(images, int):
            raise SnapshotMissing(
                f"none is planned near images={guider.images} of {self.planned_images} (callbacks.EarlySnapshots plans "
                f"them); {available(entries)}",
                not_yet=False,
            )
        if count is None:
            assert isinstance(images, int)
            count = images
        if stored_exactly(entries, count, guider.sigma_rel):
            return
        if guider.sigma_rel == 0:
            raise SnapshotMissing(f"raw weights (sigma_rel=0) are not stored; {available(entries)}", not_yet=False)
        averages = [entry for entry in entries if entry.sigma_rel > 0]
        reconstruction_shares(averages, count, guider.sigma_rel, MAX_ERROR)

    def _since(self, entry: Entry) -> int | None:
        return self.store.since(entry) if entry.since is None else entry.since
