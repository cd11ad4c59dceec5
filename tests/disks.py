"""Disks that are read-only or small, mounted for one process and its children alone."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Function, Processes

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of Linux
_NOT_POSSIBLE = 77


def forked(act: Callable[[], None]) -> None:
    """Call `act`, which may mount disks but not train, in a forked process; skip the test where that cannot be."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        except PermissionError as error:
            traceback.print_exc()
            status = _NOT_POSSIBLE if error.filename is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == _NOT_POSSIBLE:
        pytest.skip("mounting needs the rights of root")
    assert status == 0


def call_alone(processes: Processes, function: Function, log: Path, **arguments: Any) -> None:
    """Call `function` as `forked` does, in a process of which no parent has trained, so that it can train."""
    status = processes.wait(processes.start(("tests.disks", "_act"), log, function=function, arguments=arguments))
    if status == _NOT_POSSIBLE:
        pytest.skip("mounting needs the rights of root")
    assert status == 0, log.read_text()[-3000:]


def _act(function: Function, arguments: dict[str, Any]) -> None:
    module, name = function
    try:
        getattr(importlib.import_module(module), name)(**arguments)
    except PermissionError as error:
        if error.filename is not None:
            raise
        sys.exit(_NOT_POSSIBLE)


def mount(*words: str) -> None:
    """Mount for this process alone, which must not be that of the tests.

    Raises:
        PermissionError: if the system does not allow it.
    """
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_NEW_MOUNTS) != 0:
        raise PermissionError("no rights to mount")
    for command in (["mount", "--make-rprivate", "/"], ["mount", *words]):
        if subprocess.run(command, capture_output=True).returncode:
            raise PermissionError(f"{command} failed")


def make_read_only(folder: Path) -> None:
    """Make `folder` read-only, for this process if it is root's."""
    if os.geteuid() == 0:
        mount("--bind", str(folder), str(folder))
        if subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], capture_output=True).returncode:
            raise PermissionError("remounting failed")
    else:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)


@contextlib.contextmanager
def said(words: Sequence[str]) -> Iterator[None]:
    """Expect the command to be refused with one sentence that holds all `words`."""
    with pytest.raises(SystemExit) as ended:
        yield
    sentence = str(ended.value.code)
    assert sentence.startswith("lightning-guide: error: ") and "\n" not in sentence, sentence
    assert all(word in sentence for word in words), sentence
