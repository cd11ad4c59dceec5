"""Running one check, and the results of all as JSON and as a table."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scripts.benchmarks.gpu import compiled, guidances, ranks, speed, training, waits
from scripts.benchmarks.gpu.place import NotRunError, Place, Row, Size

__all__ = ["CHECKS", "Check", "Result", "run_check", "table"]

Status = Literal["ok", "failed", "not run"]


@dataclass(frozen=True)
class Check:
    """A check and its budget in seconds, start of its process included."""

    run: Callable[[Place, Size], Iterator[Row]]
    budget: float


CHECKS = {
    "guidances": Check(guidances.check, 90),
    "training": Check(training.check, 60),
    "speed": Check(speed.check, 60),
    "compiled": Check(compiled.check, 200),
    "waits": Check(waits.check, 30),
    "ranks": Check(ranks.check, 35),
}
"""Less than 8 minutes together."""


@dataclass
class Result:
    """What a check found; `error` is set if it ended before its end."""

    name: str
    status: Status = "ok"
    seconds: float = 0.0
    error: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


def run_check(name: str, check: Check, place: Place, size: Size) -> Result:
    """Run a check in this process; whatever it raises is recorded, with the rows before it."""
    result, begin = Result(name), time.perf_counter()
    try:
        for row in check.run(place, size):
            result.rows.append(asdict(row))
            if row.passed is False:
                result.status = "failed"
    except NotRunError as reason:
        result.status, result.error = "not run", str(reason)
    except Exception as error:  # a failed check must not end the others
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).splitlines() or [""])[0]
        result.status, result.error = "failed", f"{type(error).__name__}: {said} ({last.filename}:{last.lineno})"
    result.seconds = time.perf_counter() - begin
    return result


def table(results: Sequence[Result], place: str) -> str:
    """Return a table of all rows in Markdown, for docs/performance.md."""
    lines = [f"| {place} | measured | expected | |", "| --- | --- | --- | --- |"]
    for result in results:
        said = f"{result.status}: {result.error}" if result.error else result.status
        lines.append(f"| **{result.name}** ({result.seconds:.0f} s) | {said} | | |")
        marks = {True: "ok", False: "failed", None: ""}
        lines += [
            f"| {row['name']} | {row['value']} | {row['expected']} | {marks[row['passed']]} |" for row in result.rows
        ]
    return "\n".join(lines) + "\n"
