"""Kill commands at random moments, start them again, and compare their results with those of undisturbed ones.

    python -m scripts.robustness.kill                       # 50 kills over nine kinds; minutes on two CPU cores
    python -m scripts.robustness.kill --count 9 --seed 7 --only predict

The kinds: training, in a snapshot, in a checkpoint, in a validation, predict, convert, encode, synthesis, tune. Each
kill is a SIGKILL at a moment that is a function of seed, kind and number, as a share of the time that the undisturbed
command took. Outcomes: same (started again, the command ends with the same bits), different (another result, a file
more or less, or an error). A command that ended before its kill is counted and tried again. Ends with status 1 if a
result is different.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_guide.cli import main as lightning_guide
from scripts.lib.command_line import run_script
from scripts.robustness.command_results import differences, read_results
from scripts.robustness.killed_commands import COMMANDS, RESULT, KilledCommand, prepare

__all__ = ["main"]

_COLUMNS = ("killed", "ended before", "same", "different")


def main(*, count: int = 50, seed: int = 0, only: str = "") -> None:
    """Kill `count` commands, as many of each kind, each in a folder of its own.

    Args:
        count: number of kills over all kinds.
        seed: seed of the moments.
        only: kinds whose names contain this.
    """
    chosen = {name: command for name, command in COMMANDS.items() if only in name}
    if not chosen or count < 1:
        raise SystemExit(f"no kinds match {only!r}, or count is below 1; expected one of {', '.join(COMMANDS)}")
    totals: Counter[str] = Counter()
    print(f"{'kind':12s}" + "".join(f"{name:>14s}" for name in _COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "work"
        folder.mkdir()
        made = _Process(folder, functools.partial(prepare, folder))
        made.finish(f"the preparation failed: {folder}")
        for position, (name, command) in enumerate(chosen.items()):
            share = count // len(chosen) + (position < count % len(chosen))
            outcomes = _kill_all(name, command, folder, share, seed)
            totals.update(outcomes)
            print(f"{name:12s}" + "".join(f"{outcomes[key]:14d}" for key in _COLUMNS), flush=True)
    print(f"{'all':12s}" + "".join(f"{totals[key]:14d}" for key in _COLUMNS))
    sys.exit(1 if totals["different"] else 0)


def _kill_all(name: str, command: KilledCommand, folder: Path, count: int, seed: int) -> Counter[str]:
    """Kill a command `count` times; return the number of each outcome, and print what is different."""
    outcomes: Counter[str] = Counter()
    if not count:
        return outcomes
    whole = _Process(folder, functools.partial(_call, command), command.part)
    whole.finish(f"{name} failed undisturbed")
    moments, expected = whole.moments(to_the_end=command.to_the_end), read_results(folder / RESULT)
    for number in range(count):
        draw = random.Random(f"{seed} {name} {number}")
        while True:
            shutil.rmtree(folder / RESULT, ignore_errors=True)
            call, duration = draw.choice(list(enumerate(moments)))
            process = _Process(folder, functools.partial(_call, command), command.part)
            if process.kill(call, draw.random() * duration):
                break
            outcomes["ended before"] += 1
        outcomes["killed"] += 1
        again = _Process(folder, functools.partial(_call, command))
        status = again.wait()
        wrong = differences(read_results(folder / RESULT), expected) if status == 0 else [f"status {status}"]
        outcomes["different" if wrong else "same"] += 1
        if wrong:
            print(
                f"  {name} {number}, call {call}: {'; '.join(wrong[:8])} {again.said() if status else ''}", flush=True
            )
    shutil.rmtree(folder / RESULT, ignore_errors=True)
    return outcomes


def _call(command: KilledCommand) -> None:
    lightning_guide(command.words)


@dataclass
class _Process:
    """A function in a forked process, in `folder`, that reports the calls of `part`: "module:name" or "...class.name".

    What it says is written to the file `log` beside the folder.
    """

    folder: Path
    function: Any
    part: str = ""
    events: list[tuple[bytes, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start it."""
        self.log = self.folder.with_name("log")
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            self._run(write)
        os.close(write)
        self._pipe = read

    def wait(self) -> int:
        """Return the exit status, below 0 for a signal."""
        while self._next_event():
            pass
        self.events.append((b"e", time.monotonic()))
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def finish(self, message: str) -> None:
        """Wait for success.

        Raises:
            RuntimeError: with `message` and what the process said.
        """
        if status := self.wait():
            raise RuntimeError(f"{message}: status {status}\n{self.said()}")

    def kill(self, call: int, seconds: float) -> bool:
        """Kill it `seconds` after the beginning of call number `call`; return whether that was before its end."""
        begun = 0
        while begun <= call and (event := self._next_event()):
            begun += event == b"<"
        if begun > call:
            time.sleep(seconds)
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return self.wait() == -signal.SIGKILL

    def moments(self, *, to_the_end: bool) -> list[float]:
        """Return the durations of the calls, or of the time from the first to the end of the process."""
        begins = [at for kind, at in self.events if kind == b"<"]
        ends = [at for kind, at in self.events if kind == b">"]
        if to_the_end:
            return [self.events[-1][1] - begins[0]]
        return [end - begin for begin, end in zip(begins, ends, strict=True)]

    def said(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def _next_event(self) -> bytes:
        kind = os.read(self._pipe, 1)
        if kind:
            self.events.append((kind, time.monotonic()))
        return kind

    def _run(self, write: int) -> None:
        status = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(log, number)
            os.chdir(self.folder)
            if self.part:
                _report_calls(self.part, write)
            self.function()
            status = 0
        except SystemExit as end:
            status = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
            if status and isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _report_calls(part: str, pipe: int) -> None:
    """Write "<" and ">" to `pipe` before and after each call of a function; calls within one are part of it."""
    module, _, path = part.partition(":")
    owner: Any = import_module(module)
    *owners, name = path.split(".")
    for each in owners:
        owner = getattr(owner, each)
    function, depth = getattr(owner, name), [0]

    @functools.wraps(function)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        depth[0] += 1
        if depth[0] == 1:
            os.write(pipe, b"<")
        try:
            return function(*args, **kwargs)
        finally:
            depth[0] -= 1
            if not depth[0]:
                os.write(pipe, b">")

    setattr(owner, name, reporting)


if __name__ == "__main__":
    run_script(main)
