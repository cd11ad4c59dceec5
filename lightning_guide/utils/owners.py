"""Owners of locks: a process, on which machine, since when, and whether it still runs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["Owner"]


@dataclass(frozen=True)
class Owner:
    """A process that owns a folder.

    Attributes:
        host: name of its machine.
        machine: boot of that machine and namespace of its processes, in which process ids have a meaning.
        pid: its process id.
        started: when the process started, in the clock of the machine: a later process may have the same id.
        command: its command line.
        since: when it became the owner, local time.
        token: random, different for each ownership.
        inode: number of the lock file; that of a copy is another one.
    """

    host: str
    machine: str
    pid: int
    started: str
    command: str
    since: str
    token: str
    inode: int = 0

    @classmethod
    def here(cls) -> Owner:
        """Return this process as a new owner."""
        program, *words = sys.argv or [sys.executable]
        command = shlex.join([os.path.basename(program), *words])
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        pid = os.getpid()
        return cls(platform.node(), _machine(), pid, _started(pid), command[:300], since, uuid4().hex)

    @classmethod
    def read(cls, content: dict[str, Any]) -> Owner:
        """Return the owner that a lock file records.

        Raises:
            ValueError: if it records none.
        """
        try:
            return cls(**{each.name: type(getattr(_EMPTY, each.name))(content[each.name]) for each in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no owner of a lock: {error}") from None

    def plain(self) -> dict[str, Any]:
        """Return plain data for a lock file."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine that can be looked up."""
        return self.host == platform.node() and self.machine == _machine()

    @property
    def runs(self) -> bool:
        """Whether the process still runs, if it is one of this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user
            pass
        return _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since}: {self.command})"


_EMPTY = Owner("", "", 0, "", "", "", "")


def _machine() -> str:
    """Return boot and process namespace of this machine, empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; "ended" for one that only waits to be collected."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "ended" if os.path.isdir("/proc/self") else ""
    state, *rest = line.rpartition(")")[2].split()
    return "ended" if state in "ZX" else rest[18]
