"""Locks of folders: real processes that own, are killed, are suspended and race."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.owners import Owner

Start = Callable[[Callable[[], None]], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a function in a forked process and return its id once it wrote to its pipe or ended; killed at the end."""
    children: list[int] = []

    def begin(act: Callable[[], None]) -> int:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                act()
                os.write(writing, b"x")
                signal.pause()
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        children.append(child)
        return child

    yield begin
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def lock(folder: Path, beat: float = 0.05, patience: float = 0.6) -> FolderLock:
    return FolderLock(folder / ".lock", what=f"the folder {folder}", beat=beat, patience=patience)


def write_owner(folder: Path, **changes: object) -> Owner:
    """Write a lock of this process with some facts changed."""
    path = folder / ".lock"
    path.touch()
    owner = replace(Owner.here(), inode=path.stat().st_ino, **changes)  # type: ignore[arg-type]
    path.write_text(json.dumps(owner.plain()))
    return owner


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path, start: Start) -> None:
    owner = start(lambda: lock(tmp_path).acquire() and None)
    with pytest.raises(ValueError, match=rf"{tmp_path} is being written by process {owner} on {os.uname().nodename} "):
        lock(tmp_path).acquire()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_is_free_after_its_release_and_leaves_nothing(tmp_path: Path) -> None:
    with lock(tmp_path / "new"):
        assert (tmp_path / "new/.lock").is_file()
        (tmp_path / "new/file").touch()
    with lock(tmp_path / "new"), lock(tmp_path / "empty"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]


def test_the_lock_of_a_killed_process_is_taken_over_even_before_it_is_collected(tmp_path: Path, start: Start) -> None:
    owner = start(lambda: lock(tmp_path).acquire() and None)
    os.kill(owner, signal.SIGKILL)
    time.sleep(0.1)  # it is a zombie: nobody has waited for it
    begin = time.monotonic()
    with lock(tmp_path, patience=60):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin < 5


def test_a_later_process_with_the_same_id_is_not_the_owner(tmp_path: Path, start: Start) -> None:
    other = start(lambda: None)
    write_owner(tmp_path, pid=other, started="12")
    with lock(tmp_path, patience=60):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_a_copied_folder_is_not_that_of_the_copy(tmp_path: Path, start: Start) -> None:
    (tmp_path / "run").mkdir()
    start(lambda: lock(tmp_path / "run").acquire() and None)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with lock(tmp_path / "copy", patience=60):
        pass
    (tmp_path / "run").rename(tmp_path / "renamed")
    with pytest.raises(ValueError, match="is being written"):
        lock(tmp_path / "renamed").acquire()


def test_another_machine_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    owner = write_owner(tmp_path, host="elsewhere", pid=77, token="theirs")
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.1):
            os.utime(tmp_path / ".lock")

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(ValueError, match="written by process 77 on elsewhere"):
        lock(tmp_path).acquire()
    end.set()
    heart.join()
    begin = time.monotonic()
    with lock(tmp_path):
        assert 0.3 < time.monotonic() - begin < 5
    write_owner(tmp_path, host=owner.host)
    os.utime(tmp_path / ".lock", (time.time() - 3600,) * 2)
    begin = time.monotonic()
    with lock(tmp_path, patience=60):
        assert time.monotonic() - begin < 5


def test_another_boot_of_this_machine_is_another_machine(tmp_path: Path) -> None:
    write_owner(tmp_path, machine="an earlier boot")
    begin = time.monotonic()
    with lock(tmp_path):
        assert time.monotonic() - begin > 0.3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_lock_is_judged_by_its_age(content: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(content)
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_process_that_lost_its_lock_ends(tmp_path: Path) -> None:
    held = lock(tmp_path).acquire()
    held.check()
    write_owner(tmp_path, token="theirs", host="elsewhere")
    time.sleep(0.3)
    with pytest.raises(ValueError, match="was taken over by process .* on elsewhere"):
        held.check()
    held.release()
    assert (tmp_path / ".lock").exists()  # that of the other


def test_a_copy_in_another_process_releases_nothing(tmp_path: Path, start: Start) -> None:
    held = lock(tmp_path).acquire()
    start(lambda: pickle.loads(pickle.dumps(held)).release())
    assert (tmp_path / ".lock").exists()
    held.release()


def test_a_disk_without_hard_links(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*places: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    owner = start(lambda: lock(tmp_path).acquire() and None)
    with pytest.raises(ValueError, match=f"process {owner} "):
        lock(tmp_path).acquire()
    os.kill(owner, signal.SIGKILL)
    time.sleep(0.1)
    with lock(tmp_path):
        pass


def test_of_many_processes_that_find_a_stale_lock_one_becomes_the_owner(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        write_owner(folder, pid=2**22 + 1)  # no such process
        at = time.monotonic() + 0.1
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                status = 3
                try:
                    time.sleep(max(at - time.monotonic(), 0))
                    lock(folder).acquire()
                    status = 0
                    end = time.monotonic() + 20
                    while len(list(folder.glob("refused-*"))) < 3 and time.monotonic() < end:
                        time.sleep(0.01)
                except ValueError:
                    (folder / f"refused-{os.getpid()}").touch()
                    status = 4
                finally:
                    os._exit(status)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(statuses) == [0, 4, 4, 4]
