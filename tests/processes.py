"""Processes for tests: forked off one that has imported everything, so that a new one costs milliseconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVER = """
import importlib, json, os, signal, sys, time, traceback
import torch, lightning.pytorch, tests.runs
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        pid, deadline = request["wait"], time.monotonic() + request["seconds"]
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.002)
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            os.environ.update(request["environment"])
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(log, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            module, name = request["function"]
            getattr(importlib.import_module(module), name)(**request["arguments"])
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass  # it was faster, or is gone
    print(pid, flush=True)
os._exit(0)
"""


Function = tuple[str, str]


class Processes:
    """Starts and awaits calls of module-level functions (module, name), each in a process and a process group."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)
        assert self._read() == "ready"

    def start(
        self, function: Function, log: Path, /, *, environment: dict[str, str] | None = None, **arguments: Any
    ) -> int:
        """Calls `function` (module, name) with `arguments`, plain data; returns the process id."""
        request = {"function": function, "log": str(log), "environment": environment or {}, "arguments": arguments}
        return int(self._ask(request))

    def wait(self, pid: int, *, seconds: float = 120) -> int:
        """Exit status, negative for the signal that killed it; after `seconds` that is SIGKILL from here."""
        return int(self._ask({"wait": pid, "seconds": seconds}))

    def call(self, function: Function, log: Path, /, **arguments: Any) -> None:
        """Calls and awaits success."""
        status = self.wait(self.start(function, log, **arguments))
        assert status == 0, f"exit status {status}: {log.read_text()[-3000:]}"

    def start_ranks(self, world: int, function: Function, log: Path, /, **arguments: Any) -> list[int]:
        """Starts the call on `world` ranks, as a launcher outside of Lightning would; returns the process ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        places = [common | {"LOCAL_RANK": str(rank), "RANK": str(rank)} for rank in range(world)]
        logs = [log.with_name(f"{log.name}.{rank}") for rank in range(world)]
        return [self.start(function, log, environment=p, **arguments) for log, p in zip(logs, places, strict=True)]

    def call_ranks(self, world: int, function: Function, log: Path, /, **arguments: Any) -> None:
        """Calls on `world` ranks and awaits success of all."""
        statuses = [self.wait(pid) for pid in self.start_ranks(world, function, log, **arguments)]
        said = "\n".join(log.with_name(f"{log.name}.{rank}").read_text()[-2000:] for rank in range(world))
        assert not any(statuses), f"exit statuses {statuses}: {said}"

    def close(self) -> None:
        """Ends the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        if self._server.wait(60) != 0:
            raise RuntimeError("the server of forked processes failed")

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        return self._read()

    def _read(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline().strip()
        assert line, "the server of forked processes died"
        return line


def kill(pid: int, number: int = signal.SIGKILL, *, group: bool = False) -> None:
    """Sends a signal to a process, or to its whole group as a terminal does; one that has ended is left in peace."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        pass
