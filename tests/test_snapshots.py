"""The snapshot store: exact on disk, whole after every kill, and clear about what it cannot give."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_guide import ema, snapshot_file
from lightning_guide.denoiser import Denoiser
from lightning_guide.recipe import Recorded
from lightning_guide.snapshots import Entry, SnapshotMissing, SnapshotStore, fraction_images

RECIPE = {"class_path": "somewhere.Network", "init_args": {"width": 3}}


class Tiny(Denoiser):
    """A linear denoiser with one parameter, one floating buffer and one integer buffer."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.data_shape, self.num_classes, self.sigma_data = (width,), 0, 0.5
        self.weight = nn.Parameter(torch.randn(width, width))
        self.register_buffer("frequencies", torch.randn(width))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x @ self.weight.T


class NoDenoiser(Recorded, nn.Module):
    """Something a recipe can build and nobody can sample from."""


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(3, 5, generator=generator),
        "gain": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 2),
        "frequencies": torch.randn(4, generator=generator, dtype=torch.float64),
        "steps": torch.tensor(seed),
    }


def save(store: SnapshotStore, images: int, sigma_rel: float = 0.05, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"recipe": RECIPE, "planned_images": 1000, "buffers": ["frequencies"]}
    return store.save(weights(images), images=images, sigma_rel=sigma_rel, **(arguments | changes))


def run(store: SnapshotStore, times: list[int], *, plan: int = 1000) -> None:
    """Stores both default averages at each of the times."""
    for images in times:
        for width in (0.05, 0.1):
            save(store, images, width, planned_images=plan)


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


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
        with pytest.raises(ValueError, match=f"{path.name} is (truncated: {length} bytes|no snapshot)"):
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
    with pytest.raises(ValueError, match=f"{path.name} is no snapshot"):
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
    with pytest.raises(ValueError, match=f"{path.name} is no snapshot"):
        store.load(entry)
    torch.save(Bomb(), path)
    with pytest.raises(ValueError, match=f"{path.name} is no snapshot"):
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


# --- killed writers ------------------------------------------------------------------------------------

WRITER = """
import os, signal
import torch
from lightning_guide import snapshot_file
from lightning_guide.snapshots import SnapshotStore

store = SnapshotStore(folder)
calls = 0

def dies_at(module, name, number, *, after=False, before=lambda *a, **k: None):
    original = getattr(module, name)
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == number and not after:
            before(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, wrapped)

def half(tensors, path, metadata):
    from safetensors.torch import save
    data = save(tensors, metadata)
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])

exec(aim)
with open(reported, "a") as log:
    for images in range(first, first + 500):
        tensors = {"w": torch.full((200, 100), float(images)), "b": torch.arange(7.0)}
        store.save(tensors, images=images, sigma_rel=0.05, recipe={}, planned_images=1000)
        log.write(f"{images}\\n")
        log.flush()
"""


SERVER = """
import json, os, sys, torch, lightning_guide.snapshots
torch.set_num_threads(1)
for line in sys.stdin:
    names = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            exec(names.pop("writer"), names)
        finally:
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Writers:
    """Processes that save without end, forked off one that has imported what they need, and killed."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)

    def run(self, folder: Path, first: int, *, aim: str = "", after: float | None = None) -> None:
        """One writer, counting from `first`; dies `after` seconds of writing, or where `aim` says."""
        assert self.server.stdin is not None and self.server.stdout is not None
        log = folder.parent / "reported"
        known = log.read_bytes() if log.exists() else b""
        names = {"writer": WRITER, "folder": str(folder), "reported": str(log), "first": first, "aim": aim}
        self.server.stdin.write(json.dumps(names) + "\n")
        pid = int(self.server.stdout.readline())
        if after is not None:
            deadline = time.monotonic() + 60
            while (log.read_bytes() if log.exists() else b"") == known and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        assert int(self.server.stdout.readline()) == -signal.SIGKILL


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    assert writers.server.stdin is not None
    writers.server.stdin.close()
    assert writers.server.wait(60) == 0


def check_whole(folder: Path) -> None:
    """Everything reported is there, everything there loads and is what its name says."""
    store = SnapshotStore(folder)
    before = content(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = store.entries()
    log = folder.parent / "reported"
    reported = {int(line) for line in log.read_text().split()} if log.exists() else set()
    assert reported <= {entry.images for entry in entries}
    for entry in entries[-40:]:
        tensors, metadata = store.load(entry)
        assert (tensors["w"] == entry.images).all() and metadata.images == entry.images
    assert content(folder) == before


def test_killed_at_random_instants(tmp_path: Path, writers: Writers) -> None:
    folder, draw = tmp_path / "snapshots", random.Random(0)
    for attempt in range(20):
        writers.run(folder, 1000 * attempt + 1, after=draw.uniform(0, 0.03))
        check_whole(folder)
    assert len(SnapshotStore(folder).entries()) >= 20


@pytest.mark.parametrize(
    "aim",
    [
        pytest.param("dies_at(snapshot_file, 'save_file', 3, before=half)", id="half-a-snapshot"),
        pytest.param("dies_at(snapshot_file, 'save_file', 3, after=True)", id="snapshot-before-fsync"),
        pytest.param("dies_at(os, 'replace', 5)", id="snapshot-before-replace"),
        pytest.param("dies_at(os, 'replace', 5, after=True)", id="snapshot-after-replace"),
        pytest.param("dies_at(os, 'replace', 6)", id="index-before-replace"),
        pytest.param("dies_at(os, 'replace', 6, after=True)", id="index-after-replace"),
        pytest.param("dies_at(os, 'fsync', 5)", id="snapshot-before-sync"),
        pytest.param("dies_at(os, 'fsync', 6)", id="snapshot-before-folder-sync"),
        pytest.param("dies_at(os, 'fsync', 6, after=True)", id="snapshot-after-folder-sync"),
        pytest.param("dies_at(SnapshotStore, '_indexed', 5)", id="between-snapshot-and-index"),
    ],
)
def test_killed_inside_a_write(tmp_path: Path, writers: Writers, aim: str) -> None:
    folder = tmp_path / "snapshots"
    writers.run(folder, 1, aim=aim)
    assert (tmp_path / "reported").read_text() == "1\n2\n"
    check_whole(folder)
    found = [entry.images for entry in SnapshotStore(folder).entries()]
    assert found in ([1, 2], [1, 2, 3])
    stray = [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert len(stray) <= 1 and (stray or "replace" not in aim or "after" in aim)
    (folder / ".other.tmp").write_text("somebody else's")
    save(SnapshotStore(folder), 4)
    assert [path.name for path in folder.iterdir() if path.suffix == ".tmp"] == [".other.tmp"]
    assert [entry.images for entry in SnapshotStore(folder).entries()] == [*found, 4]


def test_a_failed_write_leaves_no_trace(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 64)
    before = content(store.folder)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(store, 64)
    assert content(store.folder) == before

    def refuses(*arguments: object, **more: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(snapshot_file, "save_file", refuses)
    with pytest.raises(OSError, match="cannot write .*64-sigma_rel-0.0500.safetensors: I/O error: No space left"):
        save(store, 64)
    assert content(store.folder) == before


# --- which images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "planned", "images"),
    [
        (0.3, 1000, 300),
        (1 / 3, 3000, 1000),
        ("1/3", 3000, 1000),
        ("1/16", 1000, 62),
        ("1/3.5", 7_000_000_000, 2_000_000_000),
        (1 / 3.5, 7_000_000, 2_000_000),
        (" 1 / 32 ", 3200, 100),
        ("1.0", 999, 999),
        (1.0, 999, 999),
        ("0.5", 999, 499),
    ],
)
def test_fractions_are_exact(fraction: float | str, planned: int, images: int) -> None:
    assert fraction_images(fraction, planned) == images


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, "2/1", "1/0", "x", "", "1/2/3", True, None, float("nan"), -3])
def test_what_is_neither_count_nor_fraction_is_refused(store: SnapshotStore, bad: Any) -> None:
    with pytest.raises(ValueError, match="expected a count of images or a fraction of the planned run such as"):
        store.resolve_images(bad)
    with pytest.raises(ValueError, match="expected a count|expected a fraction"):
        fraction_images(bad, 100)


def test_counts_stand_for_themselves(store: SnapshotStore) -> None:
    assert [store.resolve_images(images) for images in (5, "4096", 1e6, 1)] == [5, 4096, 1_000_000, 1]
    with pytest.raises(ValueError, match="expected a fraction of the planned run"):
        fraction_images(5, 100)


def test_fractions_find_the_snapshot_that_the_callbacks_rounded_to(store: SnapshotStore) -> None:
    run(store, [624, 1248, 2496, 10_016], plan=10_000)
    assert store.resolve_images("1/16") == 624  # 625, down to a batch
    assert store.resolve_images(0.125) == 1248
    assert store.resolve_images(1.0) == 10_016
    with pytest.raises(SnapshotMissing, match=r"no snapshot of images=1/3 \(3333 of 10000 planned\)") as caught:
        store.resolve_images("1/3")
    assert not caught.value.not_yet and "624, 1248, 2496, 10016 (4 in all), sigma_rel 0.05, 0.1" in str(caught.value)


def test_nothing_later_than_until_exists(store: SnapshotStore) -> None:
    run(store, [500, 1000])
    for images in (1.0, 1000, "1000"):
        with pytest.raises(SnapshotMissing, match="yet at images=999; available: images 500 ") as caught:
            store.tensors(images=images, sigma_rel=0.05, until=999)
        assert caught.value.not_yet
        store.tensors(images=images, sigma_rel=0.05, until=1000)
    with pytest.raises(SnapshotMissing, match="yet at images=10; there are no snapshots") as caught:
        store.tensors(images="1/2", sigma_rel=0.05, until=10)
    assert caught.value.not_yet


def test_missing_now_and_missing_for_ever(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotMissing, match="does not exist") as caught:
        store.tensors(images=0.5, sigma_rel=0.05)
    assert not caught.value.not_yet
    with pytest.raises(SnapshotMissing, match="does not exist") as caught:
        store.tensors(images=0.5, sigma_rel=0.05, until=100)
    assert caught.value.not_yet

    run(store, list(range(100, 1201, 100)))
    with pytest.raises(SnapshotMissing, match=r"100, 200, 300, 400, \.\.\., 1000, 1100, 1200 \(12 in all\)") as caught:
        store.tensors(images=1300, sigma_rel=0.05)
    assert caught.value.not_yet
    with pytest.raises(SnapshotMissing, match="no average was stored at or before images=50") as caught:
        store.tensors(images=50, sigma_rel=0.05)
    assert not caught.value.not_yet
    with pytest.raises(SnapshotMissing, match="no snapshot of images=300, sigma_rel=0 in") as caught:
        store.tensors(images=300, sigma_rel=0.0)
    assert not caught.value.not_yet
    with pytest.raises(ValueError, match="sigma_rel must lie between 0 and"):
        store.tensors(images=1300, sigma_rel=0.5)


def test_a_fraction_of_an_unplanned_run_is_refused(store: SnapshotStore) -> None:
    save(store, 500, planned_images=None)
    with pytest.raises(SnapshotMissing, match="record no planned length of the run; give a count of images") as caught:
        store.tensors(images=0.5, sigma_rel=0.05)
    assert not caught.value.not_yet


# --- reconstruction ----------------------------------------------------------------------------------


class Walk(NamedTuple):
    """A store of two averages and the raw weights of a random walk, and four averages as they were tracked."""

    store: SnapshotStore
    tracked: dict[tuple[int, float], Tensor]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    store = SnapshotStore(tmp_path_factory.mktemp("walk"))
    draw, generator = random.Random(3), torch.Generator().manual_seed(3)
    theta, images = torch.zeros(40), 0
    averages = {width: torch.zeros(40) for width in (0.05, 0.1, 0.07, 0.13)}
    tracked = {}
    for snapshot in range(100, 3201, 100):
        while images < snapshot:
            previous, images = images, min(images + draw.randint(1, 9), snapshot)
            theta = theta + torch.randn(40, generator=generator)
            for width, average in averages.items():
                ema.update_([average], [theta], ema.retention(ema.gamma(width), previous, images))
        fixed: dict[str, Any] = {"images": images, "recipe": RECIPE, "planned_images": 3200, "buffers": ["buffer"]}
        constants = {"buffer": torch.tensor(float(images)), "count": torch.tensor(images)}
        for width, average in averages.items():
            tracked[images, width] = average.clone()
        for width, value in ((0.0, theta), (0.05, averages[0.05]), (0.1, averages[0.1])):
            store.save({"theta": value, **constants}, sigma_rel=width, **fixed)
    return Walk(store, tracked)


def test_reconstruction_equals_averages_that_were_tracked_but_not_stored(walk: Walk) -> None:
    store, history = walk
    for images, fraction in ((3200, 1.0), (1600, "1/2")):
        for width, error in ((0.07, 0.02), (0.13, 0.02)):
            rebuilt = store.tensors(images=fraction, sigma_rel=width)
            wanted = history[images, width]
            assert (rebuilt["theta"] - wanted).norm() < error * wanted.norm()
            assert rebuilt["theta"].dtype is torch.float32
            assert rebuilt["buffer"] == images and rebuilt["count"] == images
        for width in (0.05, 0.1):
            assert torch.equal(store.tensors(images=fraction, sigma_rel=width)["theta"], history[images, width])


def test_many_targets_read_every_file_once(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    store = walk.store
    targets = [(1.0, 0.07), ("1/2", 0.13), (3200, 0.05), (1600, 0.09), (1.0, 0.13), (800, 0.0), (2400, 0.0)]
    single = [store.tensors(images=images, sigma_rel=width) for images, width in targets]
    reads: list[Path] = []
    original = snapshot_file.read
    monkeypatch.setattr("lightning_guide.snapshots.read", lambda path: reads.append(path) or original(path))
    together = store.reconstruct(targets)
    assert len(reads) == len(set(reads)) == 64 + 2
    for one, other in zip(single, together, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    reads.clear()
    store.reconstruct([(3200, 0.05), (3200, 0.05), (100, 0.1)])
    assert len(reads) == 2
    assert store.reconstruct([]) == []


def test_until_keeps_the_future_out_of_a_reconstruction(walk: Walk, tmp_path: Path) -> None:
    for entry in walk.store.entries():
        if entry.images <= 1600:
            shutil.copy(entry.path, tmp_path)
    then = SnapshotStore(tmp_path).tensors(images="1/2", sigma_rel=0.13)
    now = walk.store.tensors(images="1/2", sigma_rel=0.13, until=1600)
    assert torch.equal(now["theta"], then["theta"])


def test_results_do_not_share_memory_with_files_or_each_other(walk: Walk) -> None:
    store = walk.store
    first, second = store.reconstruct([(800, 0.05), (800, 0.05)])
    first["theta"].zero_()
    first["buffer"].zero_()
    assert second["theta"].any() and second["buffer"] == 800
    assert store.tensors(images=800, sigma_rel=0.05)["theta"].any()


def test_too_few_snapshots_are_refused_with_a_remedy(store: SnapshotStore) -> None:
    run(store, [250, 500, 750, 1000])
    with pytest.raises(
        SnapshotMissing,
        match=r"images=1000, sigma_rel=0.25 cannot be rebuilt well enough: from the 8 averages \(4 times\) stored up "
        r"to there its profile error is 39\.\d%, above max_error=0.05; 32 times spaced evenly up to 1000, each with "
        r"sigma_rel 0.05 and 0.1, would be enough; available: images 250, 500, 750, 1000 \(4 in all\), sigma_rel 0.05",
    ) as caught:
        store.tensors(images=1000, sigma_rel=0.25)
    assert not caught.value.not_yet
    store.tensors(images=1000, sigma_rel=0.25, max_error=0.4)
    with pytest.raises(SnapshotMissing, match="even 128 times with sigma_rel 0.05 and 0.1 would not be enough: "):
        store.tensors(images=1000, sigma_rel=0.005)


def test_snapshots_of_different_networks_are_not_mixed(store: SnapshotStore) -> None:
    run(store, [250, 500, 750])
    for width in (0.05, 0.1):
        save(store, 1000, width, recipe={"class_path": "another.Network"})
    with pytest.raises(ValueError, match="images=750 before it belong to different networks"):
        store.tensors(images=1000, sigma_rel=0.06)


# --- guiders -----------------------------------------------------------------------------------------


def test_guider_is_the_network_with_these_weights(store: SnapshotStore) -> None:
    models = [Tiny(width=4) for _ in range(8)]
    for step, model in enumerate(models, start=1):
        for width in (0.05, 0.1):
            store.save(
                model.state_dict(),
                images=125 * step,
                sigma_rel=width,
                recipe=model.recipe,
                planned_images=1000,
                buffers=["frequencies", "steps"],
            )
    state = torch.get_rng_state()
    guider = store.guider(images="1/4", sigma_rel=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(guider, Tiny) and not guider.training
    assert not any(parameter.requires_grad for parameter in guider.parameters())
    for name, value in models[1].state_dict().items():
        assert torch.equal(guider.state_dict()[name], value)
    x = torch.randn(2, 4)
    assert torch.equal(guider(x, torch.ones(2)), models[1](x, torch.ones(2)))
    rebuilt = store.guider(sigma_rel=0.07)
    assert torch.equal(rebuilt.state_dict()["frequencies"], models[-1].frequencies)
    assert torch.equal(rebuilt.state_dict()["weight"], store.tensors(sigma_rel=0.07)["weight"])


def test_guider_of_half_precision_snapshots_is_float32(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, dtype=torch.bfloat16)
    model = Tiny()
    store.save(model.state_dict(), images=10, sigma_rel=0.05, recipe=model.recipe, buffers=["frequencies"])
    guider = store.guider(images=10, sigma_rel=0.05)
    assert torch.equal(guider.weight, model.weight.bfloat16().float())
    assert torch.equal(guider.frequencies, model.frequencies)


def test_weights_that_do_not_fit_their_recipe_are_refused(store: SnapshotStore) -> None:
    model = Tiny(width=4)
    store.save(model.state_dict(), images=1, sigma_rel=0.05, recipe=Tiny(width=5).recipe)
    with pytest.raises(
        ValueError,
        match=r"do not fit their recipe at 2 names, first 'frequencies': stored \(4,\), Tiny expects \(5,\)",
    ):
        store.guider(images=1, sigma_rel=0.05)
    store.save({"weight": torch.zeros(4, 4)}, images=1, sigma_rel=0.05, recipe=model.recipe)
    with pytest.raises(ValueError, match=r"first 'frequencies': stored nothing, Tiny expects \(4,\)"):
        store.guider(images=1, sigma_rel=0.05)
    store.save(model.state_dict(), images=1, sigma_rel=0.05, recipe={"class_path": "lightning_guide.nowhere.X"})
    with pytest.raises(ValueError, match=r"lightning_guide\.nowhere\.X"):
        store.guider(images=1, sigma_rel=0.05)
    store.save(model.state_dict(), images=1, sigma_rel=0.05, recipe=NoDenoiser().recipe)
    with pytest.raises(ValueError, match="hold a NoDenoiser, expected a Denoiser"):
        store.guider(images=1, sigma_rel=0.05)
