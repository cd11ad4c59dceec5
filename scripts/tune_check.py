"""Does tuning with a twentieth of the samples find what the full grid finds? On any finished run, by the commands.

    python scripts/tune_check.py configs/digits/main.yaml configs/search/digits.yaml --out runs/digits/tune_check

`lightning-guide sweep` draws the grid once, `lightning-guide tune` searches with 5 % of its samples from a seed of its
own in each repetition, and `sweep` again scores every choice and the grid's best on fresh samples, the same for all.
Killed anywhere and begun again, it goes on. `scripts/tune_study.py` does the same in one process for the 2D study.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from tune_study import FRESH_SEED, verdict

from lightning_guide.cli import main as lightning_guide
from lightning_guide.search.scores import Scores
from lightning_guide.search.search_file import read_search


def check(
    run_config: str, search: str, *, out: str, repetitions: int = 10, share: float = 0.05, fresh_blocks: int = 160
) -> None:
    """Runs the check.

    Args:
        run_config: config of the finished run.
        search: the space, with one objective, lowest.
        out: folder of all results.
        repetitions: how often the tuner searches.
        share: of the grid's samples, for each search.
        fresh_blocks: blocks of fresh samples for each choice.
    """
    folder, written = Path(out), yaml.safe_load(Path(search).read_text())
    varied = written["axes"]
    file = read_search(search)
    objective = file.objectives[0]
    lightning_guide(["sweep", run_config, search, "--out", str(folder / "grid")])
    points = json.loads((folder / "grid" / "results.json").read_text())["points"]
    grid = {name: _scores(point) for name, point in points.items() if "values" in point}
    best = min(grid, key=lambda name: objective.loss(grid[name]))
    axes = {name: point["axes"] for name, point in points.items()}
    samples = (len(points) - 1) * file.block * file.blocks
    chosen = []
    for repetition in range(repetitions):
        place = folder / f"tune_{repetition}"
        own = _written(written | {"seed": 10 * (repetition + 1)}, folder / f"tune_{repetition}.yaml")
        lightning_guide(["tune", run_config, own, "--out", str(place), "--budget", str(int(share * samples))])
        found = json.loads((place / "tune.json").read_text())
        chosen.append((found["winners"][objective.metric]["name"], found["samples"] / samples))
    fresh: dict[str, Scores] = {}
    for number, name in enumerate(dict.fromkeys([best, *(name for name, _ in chosen)])):
        if not axes[name]:  # no guidance is scored beside every other point
            continue
        values = axes[name]
        only = {axis: {**each, "values": [values[axis]], "prior": values[axis]} for axis, each in varied.items()}
        point = {"axes": only, "seed": FRESH_SEED, "blocks": fresh_blocks}
        path, place = _written(written | point, folder / f"fresh_{number}.yaml"), folder / f"fresh_{number}"
        lightning_guide(["sweep", run_config, path, "--out", str(place)])
        scored = json.loads((place / "results.json").read_text())["points"]
        fresh |= {each: _scores(row) for each, row in scored.items()}
    for name, spent in chosen:
        print(verdict(fresh, name, best, objective.metric, spent))


def _scores(point: dict[str, Any]) -> Scores:
    return Scores(point["values"], point["without"])


def _written(content: dict[str, Any], path: Path) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


if __name__ == "__main__":
    auto_cli(check)
