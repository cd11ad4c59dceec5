"""Calls in processes whose output is a terminal."""

from __future__ import annotations

import os
import pty
import threading
from pathlib import Path
from typing import Any

from tests.processes import Function, Processes

ERASE = "\r\x1b[2K"


def run_on_terminal(processes: Processes, function: Function, *, columns: int = 60, **arguments: Any) -> str:
    """Return all that a successful call of `function` shows on a terminal, with its erased lines."""
    controller, terminal = pty.openpty()
    read: list[bytes] = []

    def drain() -> None:
        try:
            while part := os.read(controller, 4096):
                read.append(part)
        except OSError:  # the terminal is closed
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    environment = {"TERM": "xterm", "COLUMNS": str(columns)}
    status = processes.wait(processes.start(function, Path(os.ttyname(terminal)), environment=environment, **arguments))
    os.close(terminal)
    reader.join(10)
    os.close(controller)
    text = b"".join(read).decode().replace("\r\n", "\n")
    assert status == 0, text
    return text


def states(text: str) -> list[str]:
    """Return the states of rewritten lines, without what follows on further lines."""
    return [state.split("\n")[0] for state in text.split(ERASE)]
