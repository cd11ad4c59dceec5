"""Damage files of all kinds that the product reads, and read them by their real readers in child processes.

    python -m scripts.robustness.mutate                     # 1,000 files
    python -m scripts.robustness.mutate --count 40000 --only image

Outcomes: refused (one sentence in a ValueError that names the file), equal (the value of the whole file), changed
(another value, in a format without a checksum). Bad ones: silent (another value in spite of checksums), traceback (any
other exception), executed (a program was started, or a name of a pickle was resolved), hang (60 seconds), crash. Ends
with status 1 if there is a bad one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.lib.command_line import run_script
from scripts.robustness.mutations import mutate
from scripts.robustness.readers import SUBJECTS
from scripts.robustness.subject import Subject

__all__ = ["main"]

_GOOD, _BAD = ("refused", "equal", "changed"), ("silent", "traceback", "executed", "hang", "crash")
_SECONDS, _BYTES = 60, 12 * 2**30
_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")


def main(*, count: int = 1000, seed: int = 0, only: str = "", batch: int = 200) -> None:
    """Read `count` damaged files, as many of each kind, in children of at most `batch` files.

    Args:
        count: number of damaged files over all kinds.
        seed: seed of the damages.
        only: kinds whose names contain this.
        batch: files that one child reads; after a crash another one continues.
    """
    chosen = {name: subject for name, subject in SUBJECTS.items() if only in name}
    if not chosen or count < 1:
        raise SystemExit(f"no kinds match {only!r}, or count is below 1; expected one of {', '.join(SUBJECTS)}")
    totals: Counter[str] = Counter()
    print(f"{'kind':24s}" + "".join(f"{name:>10s}" for name in (*_GOOD, *_BAD)))
    for position, (name, subject) in enumerate(chosen.items()):
        share = count // len(chosen) + (position < count % len(chosen))
        outcomes = _read_all(name, subject, share, seed=seed, batch=batch)
        totals.update(outcomes)
        print(f"{name:24s}" + "".join(f"{outcomes[key]:10d}" for key in (*_GOOD, *_BAD)), flush=True)
    print(f"{'all':24s}" + "".join(f"{totals[key]:10d}" for key in (*_GOOD, *_BAD)))
    sys.exit(1 if any(totals[key] for key in _BAD) else 0)


def _read_all(name: str, subject: Subject, count: int, *, seed: int, batch: int) -> Counter[str]:
    """Read `count` damaged files of one kind; return the number of each outcome, and print the bad ones."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "whole"
        source.mkdir()
        path = subject.make(source)
        whole = json.dumps(subject.read(path), default=str)
        done = 0
        while done < count:
            numbers = range(done, min(done + batch, count))
            results, status = _in_child(name, subject, path, whole, numbers, seed)
            for number, (outcome, what) in zip(numbers, results, strict=False):
                outcomes[outcome] += 1
                if outcome in _BAD:
                    print(f"  {name} {number} ({what})")
            done += len(results)
            if len(results) < len(numbers):
                kind = "hang" if status == signal.SIGALRM else "crash"
                outcomes[kind] += 1
                print(f"  {name} {done} ({kind}, status {status})")
                done += 1
    return outcomes


def _in_child(
    name: str, subject: Subject, path: Path, whole: str, numbers: range, seed: int
) -> tuple[list[tuple[str, str]], int]:
    """Read damaged files in a child; return (outcome, description) of those that it finished, and its status."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "w", buffering=1) as out:
            _child(out, name, subject, path, whole, numbers, seed)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        results = [tuple(json.loads(line)) for line in lines if line.endswith("\n")]
    return results, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1


def _child(out: Any, name: str, subject: Subject, path: Path, whole: str, numbers: range, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in _PROGRAMS else None)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff reports there
    original, folder = path.read_bytes(), path.parent
    while folder.name != "whole":
        folder = folder.parent
    for number in numbers:
        kind, data = mutate(original, f"{seed} {name} {number}")
        copy = folder.parent / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        target = copy / path.relative_to(folder)
        target.write_bytes(data)
        started.clear()
        signal.alarm(_SECONDS)
        outcome, what = _outcome(subject, target, whole)
        signal.alarm(0)
        if started:
            outcome, what = "executed", ", ".join(started)
        out.write(json.dumps([outcome, f"{kind}: {what}"]) + "\n")


def _outcome(subject: Subject, path: Path, whole: str) -> tuple[str, str]:
    """Read one damaged file; return the outcome and a description."""
    try:
        found = json.loads(json.dumps(subject.read(path), default=str))
    except ValueError as error:
        text = str(error)
        named = path.name in text or str(path.parent) in text
        is_sentence = type(error) is ValueError or type(error).__name__ in ("SnapshotMissing",)
        if named and is_sentence and "\n" not in text:
            return "refused", text
        return "traceback", f"{type(error).__name__}: {text[:200]!r}"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {str(error)[:200]!r}"
    expected = json.loads(whole)
    if found == expected:
        return "equal", ""
    return ("silent" if subject.is_silent(expected, found) else "changed"), str(found)[:200]


if __name__ == "__main__":
    run_script(main)
