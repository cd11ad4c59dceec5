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
from lightning_guide.search.config import read_search
from lightning_guide.search.scores import Scores


def check(
    run_config: str,
    search: str,
    *,
    out: str,
    repetitions: int = 10,
    budget: int | None = None,
    block: int | None = None,
    top: int = 1,
    fresh_blocks: int = 160,
    first_seed: int = 10,
) -> None:
    """Runs the check.

    Args:
        run_config: config of the finished run.
        search: the space, with one objective, lowest.
        out: folder of all results.
        repetitions: how often the tuner searches.
        budget: samples of each search; default: 5 % of the grid's.
        block: samples in a block of the tuner; default: as in the grid.
        top: so many of the grid's best points are scored on the fresh samples, too, and the best of them there stands
            for the grid: for a grid of few samples a point.
        fresh_blocks: blocks of fresh samples for each choice.
        first_seed: of the searches; each next one is 10 higher.
    """
    folder, written = Path(out), yaml.safe_load(Path(search).read_text())
    varied = written["axes"]
    file = read_search(search)
    objective = file.objectives[0]
    lightning_guide(["sweep", run_config, search, "--out", str(folder / "grid")])
    points = json.loads((folder / "grid" / "results.json").read_text())["points"]
    grid = {name: _scores(point) for name, point in points.items() if "values" in point and point["axes"]}
    leading = sorted(grid, key=lambda name: objective.loss(grid[name]))[:top]
    axes = {name: point["axes"] for name, point in points.items()}
    samples = (len(points) - 1) * file.block * file.blocks
    chosen = []
    for repetition in range(repetitions):
        changed = {"seed": first_seed + 10 * repetition, "block": block or file.block}
        own = _written(written | changed, folder / f"tune_{repetition}.yaml")
        words = ["--out", str(folder / f"tune_{repetition}"), "--budget", str(budget or samples // 20)]
        lightning_guide(["tune", run_config, own, *words])
        found = json.loads((folder / f"tune_{repetition}" / "tune.json").read_text())
        chosen.append((found["winners"][objective.metric]["name"], found["samples"] / samples))
    fresh: dict[str, Scores] = {}
    for name in dict.fromkeys([*leading, *(name for name, _ in chosen)]):
        if not axes[name]:  # no guidance is scored beside every other point
            continue
        values = axes[name]
        only = {axis: {**each, "values": [values[axis]], "prior": values[axis]} for axis, each in varied.items()}
        point = {"axes": only, "seed": FRESH_SEED, "blocks": fresh_blocks}
        place = folder / "fresh" / "_".join(str(value) for value in values.values())
        place.parent.mkdir(exist_ok=True)
        own = _written(written | point, Path(f"{place}.yaml"))
        lightning_guide(["sweep", run_config, own, "--out", str(place)])
        scored = json.loads((place / "results.json").read_text())["points"]
        fresh |= {each: _scores(row) for each, row in scored.items()}
    best = min(leading, key=lambda name: objective.loss(fresh[name]))
    for name, spent in chosen:
        print(verdict(fresh, name, best, objective.metric, spent))


def _scores(point: dict[str, Any]) -> Scores:
    return Scores(point["values"], point["without"])


def _written(content: dict[str, Any], path: Path) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


if __name__ == "__main__":
    auto_cli(check)
