"""The snapshot store: exact on disk, and clear about damage."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_guide.snapshots import Entry, SnapshotMissing, SnapshotStore
from tests.snapshot_stores import RECIPE, content, run, save, weights

# --- what is written is what is read -----------------------------------------------------------------


def test_round_trip(store: SnapshotStore) -> None:
    path = save(store, 64)
    assert path.name == "images-000000000064-sigma_rel-0.0500.safetensors"
    (entry,) = store.entries()
    assert entry == Entry(64, 0.05, path)
    tensors, metadata = store.load(entry)
    assert tensors.keys() == weights().keys()
    for name, value in weights(64).items():
        assert torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
    assert metadata.images == 64 and metadata.sigma_rel == 0.05 and metadata.recipe == RECIPE
    assert metadata.planned_images == 1000 and metadata.buffers == ("frequencies", "steps")
    assert metadata.code_version


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_storage_type_applies_to_averages_and_not_to_buffers(tmp_path: Path, dtype: torch.dtype) -> None:
    store = SnapshotStore(tmp_path, dtype=dtype)
    save(store, 64)
    tensors, _ = store.load(store.entries()[0])
    assert tensors["a.weight"].dtype is dtype
    assert torch.equal(tensors["a.weight"], weights(64)["a.weight"].to(dtype))
    assert torch.equal(tensors["frequencies"], weights(64)["frequencies"])
    assert tensors["steps"].dtype is torch.int64
    given = store.tensors(images=64, sigma_rel=0.05)["a.weight"]
    assert given.dtype is torch.promote_types(dtype, torch.float32)
    assert torch.equal(given, tensors["a.weight"].to(given.dtype))


def test_shared_and_strided_tensors_are_stored_by_value(store: SnapshotStore) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"whole": base, "tied": base, "part": base[1], "turned": base.T, "conv": base.view(1, 3, 2, 2)}
    tensors["conv"] = tensors["conv"].to(memory_format=torch.channels_last).requires_grad_()
    store.save(tensors, images=1, sigma_rel=0.0, recipe={})
    loaded, _ = store.load(store.entries()[0])
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_saving_again_replaces_and_the_old_reader_keeps_what_it_has(store: SnapshotStore) -> None:
    save(store, 64)
    old, _ = store.load(store.entries()[0])
    store.save(weights(1), images=64, sigma_rel=0.05, recipe=RECIPE)
    (entry,) = store.entries()
    assert torch.equal(store.load(entry)[0]["a.weight"], weights(1)["a.weight"])
    assert torch.equal(old["a.weight"], weights(64)["a.weight"])


def test_entries_are_sorted_and_the_plan_is_the_newest(store: SnapshotStore) -> None:
    assert store.entries() == [] and store.planned_images is None
    for images, width in ((300, 0.1), (20, 0.1), (300, 0.05), (20, 0.0), (1_234_567_890_123, 0.05)):
        save(store, images, width, planned_images=images)
    assert [(e.images, e.sigma_rel) for e in store.entries()] == [
        (20, 0.0),
        (20, 0.1),
        (300, 0.05),
        (300, 0.1),
        (1_234_567_890_123, 0.05),
    ]
    assert store.planned_images == 1_234_567_890_123
    save(store, 1_234_567_890_124, planned_images=None)
    assert store.planned_images == 1_234_567_890_123


def test_reading_writes_nothing_and_needs_no_index(store: SnapshotStore) -> None:
    run(store, [250, 500, 750, 1000])
    (store.folder / "index.json").unlink()
    (store.folder / ".index.json.tmp").write_text("{")
    before = content(store.folder)
    reader = SnapshotStore(store.folder)
    assert len(reader.entries()) == 8 and reader.planned_images == 1000
    reader.tensors(images="1/4", sigma_rel=0.05)
    reader.tensors(images=1.0, sigma_rel=0.07)
    assert content(store.folder) == before
    absent = SnapshotStore(store.folder / "absent")
    assert absent.entries() == [] and not absent.folder.exists()


def test_what_cannot_be_recorded_is_refused(store: SnapshotStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sigma_rel of a snapshot must be 0 .*at most 4 decimals.*got 0\.12345"):
        save(store, 64, 0.12345)
    with pytest.raises(ValueError, match=r"below 12\^-0.5 = 0.2887, got 0.3"):
        save(store, 64, 0.3)
    with pytest.raises(ValueError, match="positive number of images, got 0"):
        save(store, 0)
    with pytest.raises(ValueError, match=r"buffers \['phases'\] are not among the tensors"):
        save(store, 64, buffers=["phases"])
    with pytest.raises(ValueError, match="recipe of a snapshot must be plain data: .*Tensor"):
        save(store, 64, recipe={"scale": torch.ones(1)})
    with pytest.raises(ValueError, match="floating type, got torch.int32"):
        SnapshotStore(tmp_path, dtype=torch.int32)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; expected the folder"):
        SnapshotStore(tmp_path / "file")
    assert not store.folder.exists()
    save(store, 0, 0.0)
    save(store, 64, 0.1 + 0.2 - 0.25)  # 0.05 but for rounding
    assert [(e.images, e.sigma_rel) for e in store.entries()] == [(0, 0.0), (64, 0.05)]


# --- damage --------------------------------------------------------------------------------------------


def test_every_altered_byte_is_noticed(store: SnapshotStore) -> None:
    path = save(store, 64)
    (entry,) = store.entries()
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for position in [*range(0, header, 4), *range(header, len(good))]:
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(ValueError, match=path.name):
            store.load(entry)
    path.write_bytes(good)
    store.load(entry)


def test_every_truncation_is_noticed(store: SnapshotStore) -> None:
    path = save(store, 64)
    (entry,) = store.entries()
    good = path.read_bytes()
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=f"{path.name} is (truncated: {length} bytes|not a snapshot)"):
            store.load(entry)
    path.write_bytes(good + b"x")
    with pytest.raises(ValueError, match="has foreign bytes at its end"):
        store.load(entry)


def test_sentences_about_damage(store: SnapshotStore) -> None:
    path = save(store, 64)
    (entry,) = store.entries()
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match="was altered after it was written: its checksum does not match"):
        store.load(entry)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="expected 'lightning-guide snapshot 1', found 'pt'"):
        store.load(entry)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=f"{path.name} is not a snapshot"):
        store.load(entry)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} does not exist"):
        store.load(entry)


def test_a_header_without_its_facts_is_noticed(store: SnapshotStore) -> None:
    path = save(store, 64)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "lightning-guide snapshot 1"})
    (store.folder / "index.json").unlink()
    with pytest.warns(UserWarning, match=f"{path.name} has damaged metadata: KeyError..images"):
        assert store.entries() == []


def test_nothing_is_unpickled(store: SnapshotStore) -> None:
    path = save(store, 64)
    (entry,) = store.entries()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(store.folder / "exploded"),)

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=f"{path.name} is not a snapshot"):
        store.load(entry)
    torch.save(Bomb(), path)
    with pytest.raises(ValueError, match=f"{path.name} is not a snapshot"):
        store.load(entry)
    assert not (store.folder / "exploded").exists()


def test_a_renamed_file_is_noticed(store: SnapshotStore) -> None:
    path = save(store, 64)
    path.rename(path.with_name(path.name.replace("64", "65")))
    (entry,) = store.entries()
    with pytest.raises(ValueError, match=r"was renamed: it holds images=64, sigma_rel=0.05"):
        store.load(entry)


def test_the_index_is_only_a_cache(store: SnapshotStore) -> None:
    run(store, [500, 1000])
    expected = store.entries()
    for text in ("", "{", "[]", '{"snapshots": 3}', '{"snapshots": [{}]}', json.dumps({"snapshots": []})):
        (store.folder / "index.json").write_text(text)
        assert store.entries() == expected
    save(store, 250)
    rows = json.loads((store.folder / "index.json").read_text())["snapshots"]
    assert [(row["images"], row["sigma_rel"]) for row in rows][1:] == [(e.images, e.sigma_rel) for e in expected]
    assert rows[0] == {"images": 250, "sigma_rel": 0.05, "file": store.entries()[0].path.name}


def test_a_half_copied_file_that_nobody_reported_is_left_out_with_a_warning(store: SnapshotStore) -> None:
    path = save(store, 64)
    (store.folder / path.name.replace("64", "65")).write_bytes(path.read_bytes()[:-1])
    (store.folder / "notes.txt").write_text("not ours")
    with pytest.warns(UserWarning, match="left out of the snapshots: .*65.*truncated"):
        assert [e.images for e in store.entries()] == [64]


def test_a_lost_file_is_an_error_only_when_asked_for(store: SnapshotStore) -> None:
    run(store, list(range(50, 1001, 50)))
    lost = save(store, 500)
    lost.unlink()
    assert len(store.entries()) == 39
    store.tensors(images=1000, sigma_rel=0.07)
    for _ in range(2):
        with pytest.raises(SnapshotMissing, match=f"{lost.name} was written once and is gone") as caught:
            store.tensors(images=500, sigma_rel=0.05)
        assert not caught.value.not_yet
        save(store, 1050)  # the next write does not forget it
    (store.folder / "index.json").unlink()
    with pytest.raises(SnapshotMissing, match="profile error"):
        store.tensors(images=500, sigma_rel=0.05)
    store.tensors(images=500, sigma_rel=0.05, max_error=0.3)  # rebuilt once the loss is accepted
