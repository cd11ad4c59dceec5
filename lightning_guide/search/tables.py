"""Tables of a sweep: CSV, and hyperparameters in TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lightning_guide.atomic_file import atomic
from lightning_guide.search.scores import Scores, difference
from lightning_guide.search.space import UNGUIDED, Place, Space

__all__ = ["COST", "write_csv", "write_hparams"]

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
