"""Tables of a sweep: CSV, and hyperparameters in TensorBoard.

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

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.tensorboard import SummaryWriter

from lightning_guide.search.blocks import SampledBlocks
from lightning_guide.search.config import SearchObjective, check_objectives
from lightning_guide.search.results_file import ResultsFile
from lightning_guide.search.scores import ScoreBlock, Scores, difference
from lightning_guide.search.space import UNGUIDED, Place, Space
from lightning_guide.utils.files import atomic

__all__ = ["COST", "Swept", "run_sweep", "sweep_results", "write_csv", "write_hparams"]


COST = ("nfe", "samples", "seconds")


"""Values that are no metrics."""


def write_csv(space: Space, swept: Mapping[Place, Scores], failed: Mapping[str, str], path: Path) -> None:
    """One line for each point: its values, each metric with half its interval, and the paired change by guidance."""
    metrics = [key for key in next(iter(swept.values())).values if key not in COST]
    plain = swept.get(UNGUIDED)
    endings = ("", "_half_width", "_change", "_change_half_width")
    columns = [*COST, *(key + ending for key in metrics for ending in endings), "failed"]
    axes = {axis.name: f"axis {axis.name}" if axis.name in ("point", *columns) else axis.name for axis in space.axes}
    text = io.StringIO()
    table = csv.DictWriter(text, ["point", *axes.values(), *columns])
    table.writeheader()
    for place, scores in swept.items():
        row: dict[str, Any] = {"point": space.name(place)} | {axes[k]: _plain(v) for k, v in space.shown(place).items()}
        row |= {key: scores.values.get(key) for key in COST}
        for key in metrics:
            estimate = scores.estimate(key)
            row |= {key: estimate.value, f"{key}_half_width": estimate.half_width}
            if plain is not None:
                change = difference(scores, plain, key)
                row |= {f"{key}_change": change.value, f"{key}_change_half_width": change.half_width}
        table.writerow(row)
    for place in [UNGUIDED, *space.places]:
        if (name := space.name(place)) in failed:
            shown = {axes[key]: _plain(value) for key, value in space.shown(place).items()}
            table.writerow({"point": name} | shown | {"failed": failed[name]})
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def write_hparams(space: Space, swept: Mapping[Place, Scores], folder: Path) -> None:
    """The points as hyperparameters with their metrics, for TensorBoard's HPARAMS tab, in a fresh `folder`."""
    for old in folder.rglob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for number, (place, scores) in enumerate(swept.items()):
            if place != UNGUIDED:
                values = {name: _plain(value) for name, value in space.shown(place).items()}
                metrics = {f"sweep/{key}": value for key, value in scores.values.items()}
                writer.add_hparams(values, metrics, run_name=f"point-{number:04d}")


def _plain(value: Any) -> Any:
    """A value that fits a cell."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


Swept = dict[Place, Scores]


def run_sweep(
    space: Space,
    scorer: SampledBlocks,
    ledger: ResultsFile,
    objectives: Sequence[SearchObjective],
    *,
    blocks: int,
    seed: int,
) -> None:
    """Scores no guidance and all points of `space` into `ledger`, which is written after each; what it holds is kept.

    A point that fails is noted with the reason; another run of the sweep tries it again.

    Raises:
        ValueError: with the reason of the last, if every point fails; if an objective is not reported.
    """
    chosen = [ScoreBlock(seed, number) for number in range(blocks)]
    points: dict[str, Any] = ledger.content.setdefault("points", {})
    places = [UNGUIDED, *space.places]
    for number, place in enumerate(places, 1):
        name = space.name(place)
        if "values" in points.get(name, {}):
            continue
        points[name] = {"axes": space.values(place)}
        try:
            scorer.draw(place, chosen)
            scores = scorer.scores(place, chosen)
        except ValueError as error:
            points[name]["failed"] = str(error)
            rank_zero_info(f"[{number}/{len(places)}] {name}: failed: {error}")
        else:
            points[name] |= {"values": dict(scores.values), "without": [dict(each) for each in scores.without]}
            said = "  ".join(f"{key} {value:.4g}" for key, value in scores.values.items() if key not in COST)
            rank_zero_info(f"[{number}/{len(places)}] {name}: {said}")
        if scorer.trainer.is_global_zero:
            ledger.write()
        scorer.forget(place)
        if "values" in points[name]:
            check_objectives(objectives, Scores(points[name]["values"]))
    failed = [each["failed"] for name, each in points.items() if "failed" in each and name != space.name(UNGUIDED)]
    if len(failed) == len(places) - 1:
        raise ValueError(f"every point of the sweep failed, the last one: {failed[-1]}")


def sweep_results(space: Space, ledger: ResultsFile) -> Swept:
    """The scores in a ledger by place, without those that failed."""
    points = ledger.content.get("points", {})
    return {
        place: Scores(_numbers(found["values"]), [_numbers(each) for each in found["without"]])
        for place in [UNGUIDED, *space.places]
        if "values" in (found := points.get(space.name(place), {}))
    }


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}
