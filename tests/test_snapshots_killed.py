"""The snapshot store is consistent after every kill."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots import file as snapshot_file
from tests.snapshot_stores import content, save

# --- killed writers ------------------------------------------------------------------------------------

WRITER = """
import os, signal
import torch
from lightning_guide.snapshots import file as snapshot_file
from lightning_guide.snapshots.index import SnapshotIndex
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
        """One writer, counting from `first`; dies `after` seconds of writing, or at `aim`."""
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
    """Everything reported exists, and everything that exists loads and matches its name."""
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
        pytest.param("dies_at(SnapshotIndex, 'add', 3)", id="between-snapshot-and-index"),
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
    with pytest.raises(OSError, match="No space left on device: .*64-sigma_rel-0.0500.safetensors"):
        save(store, 64)
    assert content(store.folder) == before

    def refuses(*arguments: object, **more: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(snapshot_file, "save_file", refuses)
    with pytest.raises(OSError, match="cannot write .*64-sigma_rel-0.0500.safetensors: I/O error: No space left"):
        save(store, 64)
    assert content(store.folder) == before


def test_a_disk_that_takes_no_more_bytes(store: SnapshotStore) -> None:
    """The system itself refuses to write on, in the middle of a file."""
    save(store, 64)
    before = content(store.folder)
    large = {"weight": torch.zeros(100_000)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*images-0*128-sigma_rel-0.0500.safetensors.*(large|space)"):
            store.save(large, images=128, sigma_rel=0.05, recipe={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert content(store.folder) == before
    assert [entry.images for entry in store.entries()] == [64]
    store.load(store.entries()[0])  # whole
    store.save(large, images=128, sigma_rel=0.05, recipe={})
    assert [entry.images for entry in store.entries()] == [64, 128]
