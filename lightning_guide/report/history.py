"""Training history of a run: its logged scalars, grouped into charts."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_guide.report.charts import Points
from lightning_guide.utils.files import append_to, atomic, parse_json
from lightning_guide.utils.resume import plain_data

__all__ = [
    "HISTORY",
    "NO_METRICS",
    "History",
    "append_scalars",
    "event_files",
    "keep_earlier_scalars",
    "read_history",
    "read_rounds",
]


HISTORY = "report/history.jsonl"
_SUM = "crc32"  # of the line without it


NO_METRICS = ("nfe", "samples", "seconds", "skipped", "unguided")
"""Keys of the results of an evaluation that measure no quality."""


class _Row(NamedTuple):
    """Scalars logged together; `resumes` if later steps logged before were discarded."""

    step: int
    time: float
    values: Mapping[str, float]
    resumes: bool = False


@dataclass(frozen=True)
class History:
    """Scalars of training by tag, over images seen (or steps, if images were not logged).

    Attributes:
        scalars: tag -> (x, value) pairs.
        x_label: unit of x, "images seen" or "steps".
        seconds: time from the first to the last logged value, pauses included.
    """

    scalars: dict[str, Points]
    x_label: str
    seconds: float

    def charts(self) -> dict[str, dict[str, Points]]:
        """Return title -> name -> points: losses by noise level, learning rate, and each metric over all evaluations.

        Charts whose lines all have a single point are left out; those values are in the table of results.
        """
        found: dict[str, dict[str, Points]] = {}
        for tag, points in self.scalars.items():
            group, _, name = tag.rpartition("/")
            if tag.startswith("final/"):  # hparams of older versions
                continue
            if group == "train" and name.startswith("loss"):
                chart, line = "training loss", name.removeprefix("loss_")
            elif group == "heldout":
                chart, line = "held-out loss", name
            elif group == "train":
                chart, line = name.replace("_", " "), name
            elif group and name not in NO_METRICS:
                chart, line = name, group
            else:
                continue
            found.setdefault(chart, {})[line] = points
        several = {title: lines for title, lines in found.items() if any(len(points) > 1 for points in lines.values())}
        return {
            title: {name: lines[name] for name in sorted(lines, key=_noise_level)} for title, lines in several.items()
        }


def _noise_level(name: str) -> float:
    """Return the lower noise level in the name of a loss; other names come first, in their order."""
    found = re.match(r"sigma_([\d.]+)", name)
    return float(found[1]) if found else -1.0


def read_history(run: str | Path) -> History:
    """Return the scalars that the fits of `run` logged; empty if there are none.

    They are in `report/history.jsonl`; of runs without that file those of TensorBoard's files in `tensorboard`, or of
    CSV files, are taken. Values that a killed run logged after its last checkpoint are replaced by those of the resumed
    run.
    """
    rows = list(_lines(Path(run) / HISTORY)) or _earlier(Path(run))
    scalars = {tag: points for tag, points in _in_order(rows).items() if not tag.startswith("rounds/")}
    seen = scalars.pop("images_seen", {})
    scalars.pop("epoch", None)
    factor = max(seen.values()) / max(seen) if seen and max(seen) else 1.0
    found: dict[str, Points] = {tag: [(s * factor, y) for s, y in points.items()] for tag, points in scalars.items()}
    times = [row.time for row in rows]
    return History(found, "images seen" if seen else "steps", max(times) - min(times) if times else 0.0)


def read_rounds(run: str | Path) -> History:
    """Return the numbers of the rounds of a gradient-guided optimization; empty if there were none.

    Raises:
        ValueError: if `rounds/history.jsonl` is damaged.
    """
    path = Path(run) / "rounds/history.jsonl"
    found: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        record = parse_json(line, path)
        try:
            values = {name: float(value) for name, value in record.items() if value is not None}
            place = values.pop("round")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged: expected numbers and their round, found {line[:80]!r}") from None
        for name, value in values.items():
            found.setdefault(f"rounds/{name}", []).append((place, value))
    return History(dict(found), "rounds", 0.0)


def append_scalars(path: Path, values: Mapping[str, Any], *, step: int, resumes: bool = False) -> None:
    """Append a line of strict JSON; `resumes`: values that were logged at later steps before belong to no run now."""
    line = _line(_Row(step, time.time(), {tag: float(value) for tag, value in values.items()}, resumes))
    with append_to(path) as file:
        end = file.tell()
        file.seek(max(end - 1, 0))
        torn = file.read() not in (b"", b"\n")  # by a process that was killed
        file.write(b"\n" * torn + line)


def keep_earlier_scalars(run: str | Path) -> None:
    """Copy what a run logged before it had a file `report/history.jsonl` to that file."""
    path = Path(run) / HISTORY
    if not path.exists() and (rows := _earlier(Path(run))):
        with atomic(path) as temporary:
            temporary.write_bytes(b"".join(map(_line, rows)))


def _line(row: _Row) -> bytes:
    """Return a row as a line of strict JSON; values that are not finite are null."""
    record = {"step": row.step, "time": round(row.time, 3), "values": plain_data(dict(row.values))}
    record |= {"resumes": True} if row.resumes else {}
    return json.dumps(record | {_SUM: _checksum(record)}, allow_nan=False).encode() + b"\n"


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def _earlier(run: Path) -> list[_Row]:
    """Return what a run without `report/history.jsonl` logged, one row for each step."""
    rows: dict[int, _Row] = {}
    for row in list(_events(run / "tensorboard")) or list(_tables(run)):
        rows[row.step] = _Row(row.step, row.time, {**(rows[row.step].values if row.step in rows else {}), **row.values})
    return [rows[step] for step in sorted(rows)]


def _in_order(rows: Iterable[_Row]) -> dict[str, dict[int, float]]:
    """Return tag -> step -> value with increasing steps: a point replaces those of its tag from the same step on."""
    scalars: dict[str, dict[int, float]] = {}
    for row in rows:
        for tag in scalars if row.resumes else row.values:
            points = scalars.setdefault(tag, {})
            while points and next(reversed(points)) > row.step - (not row.resumes):
                points.popitem()
        for tag, value in row.values.items():
            scalars[tag][row.step] = value
    return {tag: points for tag, points in scalars.items() if points}


def _lines(path: Path) -> Iterator[_Row]:
    """Yield the rows of a JSON lines file; warn of changed ones, and pass over those that a kill left unfinished."""
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        if not line.endswith(b"}"):
            continue
        try:
            record = json.loads(line)
            if record.pop(_SUM, None) not in (None, _checksum(record)):  # older versions wrote none
                raise ValueError
            values = {str(tag): math.nan if v is None else float(v) for tag, v in record["values"].items()}
            yield _Row(int(record["step"]), float(record["time"]), values, bool(record.get("resumes")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            warnings.warn(f"{path}, line {number}, was changed after it was written; it is left out", stacklevel=3)


def event_files(folder: Path) -> list[Path]:
    """Return the files of TensorBoard in a folder, oldest first.

    Names end with the second, the process and a count in it: of one second the tenth file comes after the ninth.
    """

    def numbers(path: Path) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

    return sorted(folder.glob("events.out.tfevents.*"), key=numbers)


def _events(folder: Path) -> Iterator[_Row]:
    """Yield the scalars of TensorBoard files, without those at step 0, which older versions gave to evaluations."""
    files = event_files(folder)
    if not files:
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes seconds

    quiet = logging.getLogger("tensorboard")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        guidance = {"scalars": 0, "images": 1, "tensors": 1}
        logs = [EventAccumulator(str(file), size_guidance=guidance).Reload() for file in files]
    finally:
        quiet.setLevel(level)
    for log in logs:
        for tag in log.Tags()["scalars"]:
            yield from (_Row(e.step, e.wall_time, {tag: e.value}) for e in log.Scalars(tag) if e.step > 0)


def _tables(run: Path) -> Iterator[_Row]:
    """Yield the rows of the CSV files of Lightning's logger, oldest file first."""
    files = [path for path in run.rglob("metrics.csv") if "branches" not in path.relative_to(run).parts]
    for path in sorted(files, key=lambda each: each.stat().st_mtime):
        written = path.stat().st_mtime
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for record in csv.DictReader(line.replace("\0", "") for line in file):
                try:
                    step = int(record.pop("step"))
                    values = {tag: float(value) for tag, value in record.items() if value}
                except (ValueError, KeyError, TypeError):
                    continue
                yield _Row(step, written, values)
