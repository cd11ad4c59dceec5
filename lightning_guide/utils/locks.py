"""Locks of folders: one owner at a time, also on network disks; those of dead owners are taken over."""

from __future__ import annotations

import atexit
import errno
import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from uuid import uuid4

from lightning.pytorch.utilities import rank_zero_info

from lightning_guide.utils.files import make_folder
from lightning_guide.utils.owners import Owner

__all__ = ["FolderLock"]

_BEAT = 10.0  # seconds between two heartbeats
_PATIENCE = 120.0  # seconds without a heartbeat after which an owner on another machine counts as dead
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


class FolderLock:
    """Lock file `path` that names its owner (`Owner`), who touches it every `beat` seconds: the heartbeat.

    A second owner is refused. A lock is taken over if its process on this machine has ended, if the file was copied
    with its folder, or if it comes from another machine and had no heartbeat for `patience` seconds. The file is
    created by a hard link, which is atomic on network disks as well, and ages are those of the disk's clock. A process
    may take over its own lock. To be used with `with`, or by `acquire` and `release`; the end of the process releases.
    """

    def __init__(self, path: str | Path, *, what: str, beat: float = _BEAT, patience: float = _PATIENCE) -> None:
        """Choose the file; `what` it locks, for messages."""
        self.path, self.what, self.beat, self.patience = Path(path), what, beat, patience
        self._owner: Owner | None = None
        self._lost: str | None = None
        self._end: threading.Event | None = None
        self._made = False

    def acquire(self) -> FolderLock:
        """Become the owner.

        Raises:
            ValueError: naming process, host and command of the present owner.
            OSError: if the file cannot be written.
        """
        self._made = not self.path.parent.exists()
        make_folder(self.path.parent)
        temporary = self.path.with_name(f"{self.path.name}.{uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("xb") as file:
                mine = _write_owner(file)
            taken_over = False
            while not self._link(temporary, mine):
                taken_over |= self._take_over(temporary)
            if taken_over:
                time.sleep(0.05)  # another process may have taken the same lock for stale
                found = self._read()
                if found is not None and found.token != mine.token:
                    raise self._refusal(found)
        finally:
            temporary.unlink(missing_ok=True)
        self._owner, self._lost, self._end = mine, None, threading.Event()
        threading.Thread(target=self._keep, args=(self._end, mine), daemon=True, name=f"lock {self.path}").start()
        atexit.register(self.release)
        return self

    def check(self) -> None:
        """Refuse to continue if another process took the lock over, as after a long suspension of this one.

        Raises:
            ValueError: naming that process.
        """
        if self._lost is not None:
            raise ValueError(f"{self.what} was taken over by {self._lost}; this process ends without writing more")

    def release(self) -> None:
        """Remove the lock, if it is that of this process."""
        if self._owner is None or self._owner.pid != os.getpid():  # a forked or spawned process
            return
        if self._end is not None:
            self._end.set()
        found = self._read()
        if found is not None and found.token == self._owner.token:
            self.path.unlink(missing_ok=True)
            if self._made:
                with suppress(OSError):  # something was written
                    self.path.parent.rmdir()
        self._owner = None
        atexit.unregister(self.release)

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the heartbeat to the process that holds the lock."""
        return self.__dict__ | {"_end": None}

    def _link(self, temporary: Path, mine: Owner) -> bool:
        """Give the file of `mine` its name; return False if there is a lock."""
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:  # a disk without hard links
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "wb") as file:
                _write_owner(file, mine)
        return True

    def _take_over(self, temporary: Path) -> bool:
        """Remove a stale lock and return True; return False if there is none any more.

        Raises:
            ValueError: if its owner lives.
        """
        try:
            owner, inode = self._read(), self.path.stat().st_ino
        except FileNotFoundError:
            return False
        if owner is not None and owner.is_here:
            if owner.runs and owner.inode == inode and owner.pid != os.getpid():
                raise self._refusal(owner)
        elif not self._await_death(owner, temporary):
            return False
        aside = temporary.with_name(f"{temporary.name}.stale")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return False
        moved = self._parse(aside)
        if (moved and moved.token) != (owner and owner.token):  # it was taken over in between: put it back
            with suppress(OSError):
                os.link(aside, self.path)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        rank_zero_info(f"{self.what}: the lock of {owner or 'an unknown process'}, which has ended, is taken over")
        return True

    def _await_death(self, owner: Owner | None, temporary: Path) -> bool:
        """Watch the heartbeat of an owner on another machine; return True if it stopped, False if the lock is gone.

        Raises:
            ValueError: if there is a heartbeat.
        """
        os.utime(temporary)  # now, in the clock of the disk
        try:
            first = self.path.stat().st_mtime_ns
            end = time.monotonic() + self.patience - (temporary.stat().st_mtime_ns - first) / 1e9
            if time.monotonic() < end:
                rank_zero_info(f"{self.what}: is {owner or 'the writer of its lock'} alive? Waiting for its heartbeat")
            while time.monotonic() < end:
                time.sleep(min(0.2, self.beat))
                if self.path.stat().st_mtime_ns != first:
                    raise self._refusal(self._read())
        except FileNotFoundError:
            return False
        return True

    def _refusal(self, owner: Owner | None) -> ValueError:
        return ValueError(
            f"{self.what} is being written by {owner or 'another process'}; wait until it has ended, or choose "
            f"another folder (lock: {self.path})"
        )

    def _read(self) -> Owner | None:
        """Return the owner in the lock file; None if there is no file, or it is damaged or still empty."""
        return self._parse(self.path)

    @staticmethod
    def _parse(path: Path) -> Owner | None:
        try:
            return Owner.read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def _keep(self, end: threading.Event, mine: Owner) -> None:
        """Touch the lock until `end`; stop when it is that of another process."""
        while not end.wait(self.beat):
            found = self._read()
            if found is not None and found.token != mine.token:
                self._lost = str(found)
                return
            try:
                os.utime(self.path)
            except OSError:  # the folder was moved or deleted, or the disk does not answer
                continue


def _write_owner(file: BinaryIO, owner: Owner | None = None) -> Owner:
    """Write `owner`, default this process, to a new lock file, and return it."""
    found = replace(owner or Owner.here(), inode=os.fstat(file.fileno()).st_ino)
    file.write((json.dumps(found.plain(), indent=1) + "\n").encode())
    file.flush()
    os.fsync(file.fileno())
    return found
