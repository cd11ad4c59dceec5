"""Rebuilding an average from hundreds of stored ones: a bounded number of files, nearly the same error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from lightning_guide.ema import profile_error
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots.names import Entry
from lightning_guide.snapshots.post_hoc import reconstruction_shares
from lightning_guide.snapshots.selection import MANY, useful_profiles


def averages(times: int) -> list[tuple[float, float]]:
    return [(1000.0 * (number + 1), width) for number in range(times) for width in (0.05, 0.1)]


def test_all_profiles_are_used_up_to_many() -> None:
    stored = averages(MANY // 2)
    assert useful_profiles(stored, (1000.0 * MANY // 2, 0.075)) == list(range(MANY))


@pytest.mark.parametrize("width", [0.02, 0.15])
def test_chosen_profiles_rebuild_nearly_as_well_as_all(width: float) -> None:
    """400 averages, of which 256 are chosen, without a repetition, the same whatever their order."""
    stored, target = averages(200), (200_000.0, width)
    chosen = useful_profiles(stored, target)
    assert len(chosen) == MANY == len(set(chosen)) and chosen == sorted(chosen)
    error = profile_error([stored[number] for number in chosen], target)
    assert error < profile_error(stored, target) + 2e-4
    nearest = stored[-MANY:]  # a plainer choice
    assert error <= profile_error(nearest, target) + 1e-5
    turned = useful_profiles(stored[::-1], target)
    assert profile_error([stored[::-1][number] for number in turned], target) == pytest.approx(error, rel=0.2)


def test_few_files_are_read_of_many() -> None:
    entries = [Entry(int(images), width, Path(f"{images}-{width}")) for images, width in averages(600)]
    shares = reconstruction_shares(entries, 600_000, 0.075, 0.05)
    assert 0 < len(shares) <= MANY and sum(shares.values()) == pytest.approx(1)
    assert max(abs(share) for share in shares.values()) < 10  # no huge opposite ones


def test_saving_reads_no_other_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index grows by one row, and an index that somebody else wrote is written anew."""
    store = SnapshotStore(tmp_path)

    def save(images: int) -> None:
        store.save({"w": torch.ones(2)}, images=images, sigma_rel=0.1, recipe={})

    save(1)
    (tmp_path / "index.json").write_text("[]")
    save(2)
    listed, looked = os.listdir, []
    monkeypatch.setattr(Path, "iterdir", lambda self: looked.append(self) or map(self.joinpath, listed(self)))
    save(3)
    save(3)
    assert not looked
    rows = json.loads((tmp_path / "index.json").read_text())["snapshots"]
    assert [row["images"] for row in rows] == [1, 2, 3] == [entry.images for entry in store.entries()]
    assert looked
