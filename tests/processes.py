"""Processes for tests, forked from a server that has imported everything, so that a new one starts in milliseconds."""

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
torch.set_num_threads(1)  # no pool of threads, which a fork would not have
for name in sys.argv[1:]:
    importlib.import_module(name)
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
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
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
        pass  # the child called setpgid first, or has exited
    print(pid, flush=True)
os._exit(0)
"""


Function = tuple[str, str]


class Processes:
    """Starts calls of functions (module, name), each in its own process and process group, and waits for them."""

    def __init__(self, *modules: str) -> None:
        """Start the server, which imports `modules` as well."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER, *modules], env=environment, **pipes)
        assert self._read() == "ready"

    def start(
        self, function: Function, log: Path, /, *, environment: dict[str, str] | None = None, **arguments: Any
    ) -> int:
        """Start `function` (module, name) with `arguments`, plain data, and return the process id."""
        request = {"function": function, "log": str(log), "environment": environment or {}, "arguments": arguments}
        return int(self._request(request))

    def wait(self, pid: int, *, seconds: float = 120) -> int:
        """Return the exit status, negative for a signal; a process that runs longer than `seconds` is killed."""
        return int(self._request({"wait": pid, "seconds": seconds}))

    def call(self, function: Function, log: Path, /, **arguments: Any) -> None:
        """Start a call and wait for success."""
        status = self.wait(self.start(function, log, **arguments))
        assert status == 0, f"exit status {status}: {log.read_text()[-3000:]}"

    def start_ranks(self, world: int, function: Function, log: Path, /, **arguments: Any) -> list[int]:
        """Start the call on `world` ranks, like a launcher outside of Lightning; return the process ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        places = [common | {"LOCAL_RANK": str(rank), "RANK": str(rank)} for rank in range(world)]
        logs = [log.with_name(f"{log.name}.{rank}") for rank in range(world)]
        return [self.start(function, log, environment=p, **arguments) for log, p in zip(logs, places, strict=True)]

    def call_ranks(self, world: int, function: Function, log: Path, /, **arguments: Any) -> None:
        """Start the call on `world` ranks and wait for success of all."""
        statuses = [self.wait(pid) for pid in self.start_ranks(world, function, log, **arguments)]
        logs = "\n".join(log.with_name(f"{log.name}.{rank}").read_text()[-2000:] for rank in range(world))
        assert not any(statuses), f"exit statuses {statuses}: {logs}"

    def close(self) -> None:
        """Stop the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        if self._server.wait(60) != 0:
            raise RuntimeError("the server of forked processes failed")
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _request(self, request: dict[str, Any]) -> str:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        return self._read()

    def _read(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline().strip()
        assert line, "the server of forked processes died"
        return line


def kill(pid: int, number: int = signal.SIGKILL, *, group: bool = False) -> None:
    """Send a signal to a process, or to its group as a terminal does; a process that has ended is ignored."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        pass
