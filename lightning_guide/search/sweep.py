"""Sweep: every point of a space over the same blocks of samples; tables as CSV and TensorBoard hyperparameters.

A sweep: every point of a space, over the same blocks of samples, one after another.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from lightning_guide.search.blocks import SampledBlocks
from lightning_guide.search.config import SearchObjective, check_objectives
from lightning_guide.search.race import best_scores
from lightning_guide.search.results_file import ResultsFile
from lightning_guide.search.scores import ScoreBlock, Scores, difference
from lightning_guide.search.space import UNGUIDED, Point, Space
from lightning_guide.utils.files import atomic

__all__ = ["COST", "Swept", "run_sweep", "sweep_results", "write_csv", "write_hparams"]


COST = ("nfe", "samples", "seconds")


"""Keys of a report that are costs, not metrics."""


def write_csv(space: Space, swept: Mapping[Point, Scores], failed: Mapping[str, str], path: Path) -> None:
    """One line for each point: its values, each metric with half its interval, and the paired change by guidance."""
    metrics = [key for key in next(iter(swept.values())).values if key not in COST]
    plain = swept.get(UNGUIDED)
    endings = ("", "_half_width", "_change", "_change_half_width")
    columns = [*COST, *(key + ending for key in metrics for ending in endings), "failed"]
    axes = {axis.name: f"axis {axis.name}" if axis.name in ("point", *columns) else axis.name for axis in space.axes}
    text = io.StringIO()
    table = csv.DictWriter(text, ["point", *axes.values(), *columns])
    table.writeheader()
    for point, scores in swept.items():
        row: dict[str, Any] = {"point": space.name(point)} | {axes[k]: _cell(v) for k, v in space.shown(point).items()}
        row |= {key: scores.values.get(key) for key in COST}
        for key in metrics:
            estimate = scores.estimate(key)
            row |= {key: estimate.value, f"{key}_half_width": estimate.half_width}
            if plain is not None:
                change = difference(scores, plain, key)
                row |= {f"{key}_change": change.value, f"{key}_change_half_width": change.half_width}
        table.writerow(row)
    for point in [UNGUIDED, *space.points]:
        if (name := space.name(point)) in failed:
            shown = {axes[key]: _cell(value) for key, value in space.shown(point).items()}
            table.writerow({"point": name} | shown | {"failed": failed[name]})
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def write_hparams(space: Space, swept: Mapping[Point, Scores], folder: Path, *, figures: Sequence[Path] = ()) -> None:
    """The points as hyperparameters with their metrics, and PNG `figures`, for TensorBoard.

    The event files of an earlier call, which `folder`/written.json lists, are removed; others stay.
    """
    record = folder / "written.json"
    for old in json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []:
        (folder / old).unlink(missing_ok=True)
    others = set(folder.rglob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        for path in figures:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            writer.add_image(f"sweep/{path.stem}", pixels, len(swept), dataformats="HWC")
        for number, (point, scores) in enumerate(swept.items()):
            if point != UNGUIDED:
                values = {name: _cell(value) for name, value in space.shown(point).items()}
                metrics = {f"sweep/{key}": value for key, value in scores.values.items()}
                writer.add_hparams(values, metrics, run_name=f"point-{number:04d}")
    written = sorted(str(path.relative_to(folder)) for path in {*folder.rglob("events.out.tfevents.*")} - others)
    with atomic(record) as temporary:
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _cell(value: Any) -> Any:
    """Value as plain data of a table cell."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


Swept = dict[Point, Scores]


def run_sweep(
    space: Space,
    scorer: SampledBlocks,
    ledger: ResultsFile,
    objectives: Sequence[SearchObjective],
    *,
    blocks: int,
    seed: int,
) -> None:
    """Score no guidance and all points of `space` into `ledger`, written after each; existing results stay.

    A point that fails is recorded with the reason; rerunning the sweep retries it.

    Raises:
        ValueError: with the reason of the last, if every point fails; if an objective is not reported.
    """
    chosen = [ScoreBlock(seed, number) for number in range(blocks)]
    recorded: dict[str, Any] = ledger.content.setdefault("points", {})
    points, swept = [UNGUIDED, *space.points], sweep_results(space, ledger)
    for number, point in enumerate(points, 1):
        name = space.name(point)
        if "values" in recorded.get(name, {}):
            scorer.evaluations.progress.skip(blocks * scorer.size)
            continue
        recorded[name] = {"axes": space.values(point)}
        try:
            scorer.draw(point, chosen)
            scores = scorer.scores(point, chosen)
        except ValueError as error:
            recorded[name]["failed"] = str(error)
            scorer.evaluations.progress.skip(blocks * scorer.size)
            rank_zero_info(f"[{number}/{len(points)}] {name}: failed: {error}")
        else:
            recorded[name] |= {"values": dict(scores.values), "without": [dict(each) for each in scores.without]}
            summary = "  ".join(f"{key} {value:.4g}" for key, value in scores.values.items() if key not in COST)
            rank_zero_info(f"[{number}/{len(points)}] {name}: {summary}")
        if scorer.trainer.is_global_zero:
            ledger.write_point(name)
        scorer.discard(point)
        if "values" in recorded[name]:
            check_objectives(objectives, Scores(recorded[name]["values"]))
            swept[point] = _scores(recorded[name])
            scorer.show_best(best_scores(objectives, swept))
    failed = [each["failed"] for name, each in recorded.items() if "failed" in each and name != space.name(UNGUIDED)]
    if len(failed) == len(points) - 1:
        raise ValueError(f"every point of the sweep failed, the last one: {failed[-1]}")


def sweep_results(space: Space, ledger: ResultsFile) -> Swept:
    """Scores in a results file by point, without those that failed."""
    points = ledger.content.get("points", {})
    return {
        point: _scores(found)
        for point in [UNGUIDED, *space.points]
        if "values" in (found := points.get(space.name(point), {}))
    }


def _scores(found: dict[str, Any]) -> Scores:
    return Scores(_numbers(found["values"]), [_numbers(each) for each in found["without"]])


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}
