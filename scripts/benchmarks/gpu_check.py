"""What only a GPU can show, in one command of under 8 minutes: the numbers of the CPU, training, speed, graphs, waits.

    python -m scripts.benchmarks.gpu_check                       # on a machine with a GPU
    python -m scripts.benchmarks.gpu_check --carry true          # what must be copied to such a machine
    python -m scripts.benchmarks.gpu_check --device cpu --tiny true

Each check (`scripts/benchmarks/gpu`) has a process of its own with a budget, so that one that fails, hangs or breaks
the device does not end the others. Written are OUT.json and OUT.md, a table; the exit status is 1 if any check failed.
Nothing is downloaded. What a machine cannot do is said to be not run.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from scripts.benchmarks.gpu.place import FULL, TINY, Place
from scripts.benchmarks.gpu.results import CHECKS, Result, run_check, table
from scripts.lib.command_line import run_script

__all__ = ["main", "run_apart"]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lightning_guide", "callbacks", "datamodules", "configs", "scripts")


def main(
    *,
    device: str = "cuda",
    tiny: bool = False,
    only: list[str] | None = None,
    out: str = "gpu_check",
    carry: bool = False,
    inside: bool = False,
) -> None:
    """Run the checks.

    Args:
        device: of all models.
        tiny: small networks and few guidances, to see that everything runs.
        only: names of checks; default: all.
        out: path of the results without suffix.
        carry: print what the checks need besides Python and torch, and run nothing.
        inside: run them in this process, without budgets.
    """
    if carry:
        print("\n".join(needed()))
        return
    if unknown := sorted({*(only or [])} - CHECKS.keys()):
        raise ValueError(f"there is no check {unknown[0]!r}; expected one of {', '.join(CHECKS)}")
    place, begin = Place.of(device), time.perf_counter()
    results = []
    for name in only or CHECKS:
        if inside:
            results.append(run_check(name, CHECKS[name], place, TINY if tiny else FULL))
        else:
            arguments = ["--device", device, "--tiny", str(tiny).lower(), "--only", f"[{name}]"]
            results.append(run_apart(name, arguments, CHECKS[name].budget))
        print(f"{name}: {results[-1].status} {results[-1].error} ({results[-1].seconds:.0f} s)", flush=True)
    write(Path(out), results, place, time.perf_counter() - begin)
    if any(result.status == "failed" for result in results):
        sys.exit(1)


def write(out: Path, results: list[Result], place: Place, seconds: float) -> None:
    """Write `out`.json and `out`.md."""
    about = {"device": place.name(), "torch": torch.__version__, "seconds": round(seconds, 1)}
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {**about, "checks": [asdict(result) for result in results]}
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table(results, f"{about['device']}, torch {about['torch']}"), encoding="utf-8")


def run_apart(name: str, arguments: list[str], budget: float) -> Result:
    """Return the result of a check in a process of its own, which is killed after `budget` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, begin = Path(folder) / "result", time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "scripts.benchmarks.gpu_check",
            *arguments,
            "--inside",
            "true",
            "--out",
            str(out),
        ]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _, said = process.communicate(timeout=budget)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own ranks and compilers with it
            process.communicate()
            return Result(name, "failed", time.perf_counter() - begin, f"not done in {budget:g} s")
        file = out.with_suffix(".json")
        if not file.exists():
            last = (said.strip().splitlines() or ["no message"])[-1]
            return Result(name, "failed", time.perf_counter() - begin, f"exit status {process.returncode}: {last}")
        return Result(**json.loads(file.read_text(encoding="utf-8"))["checks"][0])


def needed() -> list[str]:
    """Return the folders of the repository, and the installed distributions that the checks import, without torch's."""
    known = importlib.metadata.packages_distributions()
    imported = {name.partition(".")[0] for name in sys.modules}
    found = {each for name in imported for each in known.get(name, ())}
    found = {each for each in found if each.lower().replace("_", "-") not in _brought_by("torch")}
    packages = sorted(f"{each}=={importlib.metadata.version(each)}" for each in found)
    return [*(f"{folder}/" for folder in FOLDERS), *packages]


def _brought_by(name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the normalized names of a distribution and of all that it requires."""
    name = name.lower().replace("_", "-")
    if name in seen:
        return seen
    seen |= {name}
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    for each in requires:
        if "extra ==" not in each and (match := re.match(r"[\w.-]+", each)):
            seen = _brought_by(match[0], seen)
    return seen


if __name__ == "__main__":
    run_script(main)
