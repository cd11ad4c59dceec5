"""Snapshot store: averaged weights on disk, and post-hoc reconstruction of any average.

A folder holds one file for each (images, sigma_rel) and an index of them (`SnapshotIndex`). Only the training process
of rank 0 writes; any process may read at the same time. A process killed at any moment leaves a readable store: a file
gets its final name only once it is complete, and is found again if the index does not list it yet.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.ema import gamma
from lightning_guide.origin import same_weights
from lightning_guide.snapshots.file import Metadata, read, read_metadata, write
from lightning_guide.snapshots.index import SnapshotIndex
from lightning_guide.snapshots.names import (
    Entry,
    SnapshotMissing,
    available,
    file_name,
    fraction_images,
    named_count,
    parse_images,
    stored_exactly,
)
from lightning_guide.snapshots.post_hoc import MAX_ERROR, Rebuilt, reconstruction_shares, weighted_sums
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.recipe import build, key_of

__all__ = ["SnapshotStore"]


class SnapshotStore:
    """Snapshots of one run in `folder`, stored in `dtype`.

    Opening reads nothing and writes nothing; the folder is made by the first `save`.
    """

    def __init__(self, folder: Path | str, *, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` of averages and raw weights on disk; buffers keep theirs.

        Raises:
            ValueError: if `folder` is a file or `dtype` no floating type.
        """
        self.folder = Path(folder).expanduser()
        self.dtype = dtype
        self._index = SnapshotIndex(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; expected the folder of a run's snapshots")
        if not dtype.is_floating_point:
            raise ValueError(f"snapshots must be stored in a floating type, got {dtype}")

    def save(
        self,
        tensors: Mapping[str, Tensor],
        *,
        images: int,
        sigma_rel: float,
        recipe: dict[str, Any],
        planned_images: int | None = None,
        buffers: Collection[str] = (),
        since: int | None = None,
    ) -> Path:
        """Write one snapshot, then the index, each atomically; returns once the snapshot is on the disk.

        `sigma_rel` 0 marks raw weights, `since` counts the images at the update before (`named_count`). `buffers` names
        the tensors that are not averaged: they, and all that are not of a floating type, are stored bit for bit. A
        snapshot of the same (images, sigma_rel) is replaced.

        Raises:
            ValueError: if `images`, `sigma_rel`, `recipe` or `buffers` cannot be recorded.
            OSError: if the file cannot be written.
        """
        path = self.folder / file_name(images, sigma_rel)
        unknown = sorted(set(buffers) - set(tensors))
        if unknown:
            raise ValueError(f"buffers {unknown} are not among the tensors {sorted(tensors)}")
        try:
            json.dumps(recipe)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the recipe of a snapshot must be plain data: {error}") from None
        kept = [name for name, tensor in tensors.items() if name in buffers or not tensor.is_floating_point()]
        width = round(float(sigma_rel), 4)
        metadata = Metadata(images, width, recipe, planned_images, tuple(sorted(kept)), since=since)
        self._index.remove_stale()
        write(path, tensors, metadata, dtype=self.dtype)
        self._index.add(Entry(images, width, path))
        return path

    def entries(self) -> list[Entry]:
        """All whole snapshots in the folder, by images, then sigma_rel; a file cut off by a copy only warns."""
        return self._index.entries()

    def forget(self, names: Collection[str]) -> None:
        """Take files that were moved elsewhere out of the index."""
        if names:
            self._index.write(without=names)

    @property
    def planned_images(self) -> int | None:
        """Planned length of the run in images, from the newest snapshot that records it."""
        return self._planned(self.entries())

    def load(self, entry: Entry) -> tuple[dict[str, Tensor], Metadata]:
        """Tensors, as stored, and metadata of one snapshot, after verifying its checksum.

        Raises:
            ValueError: naming the file, if it is missing, cut off, altered, renamed or no snapshot.
        """
        tensors, metadata = read(entry.path)
        if (metadata.images, metadata.sigma_rel) != (entry.images, entry.sigma_rel):
            raise ValueError(
                f"{entry.path} was renamed: it holds images={metadata.images}, sigma_rel={metadata.sigma_rel:g}"
            )
        return tensors, metadata

    def resolve_images(self, images: int | float | str, until: int | None = None) -> int:
        """The stored count that `images`, a count or a fraction of the planned run, names (`named_count`).

        A count that names no snapshot is returned as it is. Snapshots later than `until` do not exist.

        Raises:
            SnapshotMissing: if a fraction names no snapshot, or the run recorded no plan.
            ValueError: if `images` cannot be understood.
        """
        count, entries = parse_images(images), self._until(until)
        planned = None if isinstance(count, int) else self._planned(entries)
        if (found := named_count(images, planned, entries, self.since)) is not None:
            return found
        if isinstance(count, int):
            return count
        if entries and planned is None:
            raise SnapshotMissing(
                f"images={images} is a fraction, but the snapshots in {self.folder} record no planned length of "
                f"the run; give a count of images; {available(entries)}",
                not_yet=False,
            )
        wanted = fraction_images(images, planned or 0)
        detail = f" ({wanted} of {planned} planned)" if planned else ""
        raise self._missing(f"images={images}{detail}", wanted, entries, until)

    def since(self, entry: Entry) -> int | None:
        """Images at the update before a snapshot, if its file records them."""
        try:
            return read_metadata(entry.path).since
        except ValueError:  # damaged, which loading it reports
            return None

    def tensors(
        self,
        *,
        images: int | float | str = 1.0,
        sigma_rel: float,
        until: int | None = None,
        max_error: float = MAX_ERROR,
    ) -> dict[str, Tensor]:
        """The weights averaged with `sigma_rel` over the first `images`: `reconstruct` of a single target."""
        return self.reconstruct([(images, sigma_rel)], until=until, max_error=max_error)[0]

    def reconstruct(
        self,
        targets: Sequence[tuple[int | float | str, float]],
        *,
        until: int | None = None,
        max_error: float = MAX_ERROR,
    ) -> list[dict[str, Tensor]]:
        """Weights of many (images, sigma_rel) in one pass that reads every file needed exactly once.

        A stored target comes back exactly; another one is sum_i x_i theta_i over all averages stored up to its
        time (`ema.reconstruction_weights`), accumulated in at least float32, with the buffers of the newest of
        them. sigma_rel 0 asks for raw weights, which are only ever stored. Snapshots later than `until` do not
        exist. All targets are held in memory.

        Raises:
            SnapshotMissing: if a target is not there and its profile error would exceed `max_error`.
            ValueError: if a file is damaged or the files needed belong to different networks.
        """
        return [tensors for tensors, _ in self._rebuild(targets, until, max_error)]

    def guider(
        self,
        *,
        images: int | float | str = 1.0,
        sigma_rel: float,
        until: int | None = None,
        max_error: float = MAX_ERROR,
        shared: Sequence[Denoiser] = (),
    ) -> Denoiser:
        """The denoiser that the recipe of the snapshot describes, with these weights; frozen, in eval mode, on the CPU.

        The global random state is left as it was. Low-rank additions to one of the models in `shared`, by its
        fingerprint, share its weights, where they are, instead of loading them again.

        Raises:
            SnapshotMissing: as `reconstruct`.
            ValueError: as `reconstruct`, or if the recipe does not build a denoiser that these weights fit.
        """
        ((tensors, metadata),) = self._rebuild([(images, sigma_rel)], until, max_error)
        with torch.random.fork_rng(devices=[]):
            denoiser = build(metadata.recipe, _found_again(metadata.recipe, tensors, shared))
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"the snapshots in {self.folder} hold a {type(denoiser).__name__}, expected a Denoiser")
        needed = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
        stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wrong = sorted(name for name in needed.keys() | stored.keys() if needed.get(name) != stored.get(name))
        if wrong:
            raise ValueError(
                f"weights in {self.folder} do not fit their recipe at {len(wrong)} names, first {wrong[0]!r}: "
                f"stored {stored.get(wrong[0], 'nothing')}, {type(denoiser).__name__} "
                f"expects {needed.get(wrong[0], 'nothing')}"
            )
        denoiser.load_state_dict(tensors)
        return denoiser.eval().requires_grad_(False)

    def _rebuild(
        self, targets: Sequence[tuple[int | float | str, float]], until: int | None, max_error: float
    ) -> list[Rebuilt]:
        """Weights and metadata of all targets, in one pass."""
        entries = self._until(until)
        averages = [entry for entry in entries if entry.sigma_rel > 0]
        plans: list[dict[Entry, float]] = []
        for images, sigma_rel in targets:
            if sigma_rel != 0:
                gamma(sigma_rel)  # refuses an invalid width before any look-up
            count = self.resolve_images(images, until)
            if same := stored_exactly(entries, count, sigma_rel):
                plans.append({same: 1.0})
                continue
            self._index.check_not_lost(count, sigma_rel)
            if sigma_rel == 0 or not entries or count > entries[-1].images:
                raise self._missing(f"images={count}, sigma_rel={sigma_rel:g}", count, entries, until)
            plans.append(reconstruction_shares(averages, count, sigma_rel, max_error))
        return weighted_sums(self.load, plans)

    def _until(self, until: int | None) -> list[Entry]:
        """Entries that exist once `until` images have been seen."""
        return [entry for entry in self.entries() if until is None or entry.images <= until]

    def _planned(self, entries: Sequence[Entry]) -> int | None:
        """The newest plan among `entries`."""
        plans = (read_metadata(entry.path).planned_images for entry in reversed(entries))
        return next((plan for plan in plans if plan is not None), None)

    def _missing(self, what: str, images: int, entries: Sequence[Entry], until: int | None) -> SnapshotMissing:
        """The error for a snapshot that is not among `entries`."""
        if not self.folder.is_dir():
            wrong = f"the folder {self.folder} does not exist{did_you_mean(self.folder)}"
            return SnapshotMissing(f"no snapshot of {what}: {wrong}", not_yet=until is not None)
        not_yet = not entries or images > entries[-1].images
        when = " yet" if not_yet else ""
        at = f" at images={until}" if until is not None else ""
        message = f"no snapshot of {what} in {self.folder}{when}{at}; {available(entries)}"
        return SnapshotMissing(message, not_yet=not_yet)


def _found_again(
    recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], shared: Sequence[Denoiser]
) -> dict[str, Denoiser]:
    """Return that model in `shared` to which stored additions belong, by the key of its origin in the recipe."""
    origin, stored = (recipe.get("init_args") or {}).get("denoiser"), tensors.get("base")
    if stored is None:
        return {}
    same = (each for each in shared if each.origin is not None and each.origin.weights is not None)
    return {key_of(origin): each for each in same if same_weights(each.origin.weights, stored)}  # type: ignore[union-attr,arg-type]
