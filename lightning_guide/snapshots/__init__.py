"""The snapshot store: which weights were kept when, on disk, and how to get any average of them back."""

from __future__ import annotations

from lightning_guide.snapshots.file import Metadata
from lightning_guide.snapshots.index import SnapshotIndex
from lightning_guide.snapshots.names import Entry, SnapshotMissing, fraction_images
from lightning_guide.snapshots.store import SnapshotStore

__all__ = ["Entry", "Metadata", "SnapshotIndex", "SnapshotMissing", "SnapshotStore", "fraction_images"]
