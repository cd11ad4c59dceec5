"""Accuracy of the tuner: does a search with a twentieth of the samples find the best point of the full grid?

    python -m scripts.studies.search.run fractal2d --run runs/fractal2d/main --out runs/fractal2d/tune_study
    python -m scripts.studies.search.run finished_run configs/digits/main.yaml configs/search/digits.yaml \\
        --out runs/digits/tune_check

`fractal2d`: the model of the 2D fractal, in one process. The whole grid of configs/search/fractal.yaml is drawn once;
each repetition searches with 5 % of the number of its samples, drawn from seeds of its own. The choices and the best
point of the grid are scored again on 200,000 fresh samples, the same for all. `study.json` is written after every step.

`finished_run`: any finished run, through the commands. `lightning-guide sweep` draws the grid once, `lightning-guide
tune` searches with 5 % of its samples in each repetition, and `sweep` scores every choice and the grid's best point on
fresh samples, the same for all.

Run the same command again to continue a study that was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_guide.cli import main as lightning_guide
from lightning_guide.search.config import read_search
from lightning_guide.search.halving import Halving
from lightning_guide.search.scores import Estimate, ScoreBlock, Scores, difference
from lightning_guide.search.space import UNGUIDED, Space
from lightning_guide.utils.files import read_yaml
from scripts.lib.command_line import run_script
from scripts.studies.search.points import METRIC, Points

GRID_PART, TUNE_PART, FRESH_PART = 2048, 512, 10_000  # points in one call
FRESH_SEED = 10**6


def fractal2d(
    *,
    run: str = "runs/fractal2d/main",
    out: str = "runs/fractal2d/tune_study",
    search: str = "configs/search/fractal.yaml",
    repetitions: int = 10,
    budget: int | None = None,
    top: int = 1,
    fresh: int = 200_000,
    first_seed: int = 10,
) -> None:
    """Check the tuner on the 2D fractal.

    Args:
        run: the finished run of configs/fractal2d/main.yaml.
        out: folder of `study.json`.
        search: file of the search space.
        repetitions: number of searches.
        budget: samples of each search; default: 5 % of the grid's.
        top: number of the grid's best points that are scored on the fresh samples; the best of them there represents
            the grid. For a budget that is 5 % of a finer grid.
        fresh: samples of the last scores.
        first_seed: seed of the first search; each next one is 10 higher.
    """
    torch.set_num_threads(1)
    file = read_search(search)
    space = Space(dict(file.evaluation), file.axes)
    path = Path(out) / "study.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"grid": {}, "repetitions": [], "fresh": {}}
    if path.exists():
        content = json.loads(path.read_text())
    by_name = {space.name(point): point for point in [UNGUIDED, *space.points]}
    grid_samples = len(space.points) * file.block * file.blocks
    blocks = [ScoreBlock(0, number) for number in range(file.blocks)]
    for name, point in by_name.items():
        if name not in content["grid"]:
            scorer = Points(run, space, file.block, part=GRID_PART)
            content["grid"][name] = scorer.scores(point, blocks, interval=False).values[METRIC]
            path.write_text(json.dumps(content, indent=1))
    leading = sorted(content["grid"], key=content["grid"].get)[:top]
    for repetition in range(len(content["repetitions"]), repetitions):
        scorer = Points(run, space, file.block, part=TUNE_PART)
        seed = first_seed + 10 * repetition
        halving = Halving(space, scorer, file.objectives, budget=budget or grid_samples // 20, seed=seed)
        found = halving.run()
        finalists = {space.name(point): each.values[METRIC] for point, each in found.raced.fresh.items()}
        tuned = {"tuned": space.name(found.raced.winners[METRIC]), "samples": found.samples, "finalists": finalists}
        content["repetitions"].append(tuned)
        path.write_text(json.dumps(content, indent=1))
        print(repetition, tuned["tuned"], flush=True)
    for name in dict.fromkeys([space.name(UNGUIDED), *leading, *(each["tuned"] for each in content["repetitions"])]):
        if name not in content["fresh"]:
            scorer = Points(run, space, FRESH_PART, part=FRESH_PART)
            blocks = [ScoreBlock(FRESH_SEED, number) for number in range(-(-fresh // FRESH_PART))]
            scores = scorer.scores(by_name[name], blocks)
            content["fresh"][name] = {"value": dict(scores.values), "without": [dict(each) for each in scores.without]}
            path.write_text(json.dumps(content, indent=1))
    best = min(leading, key=lambda name: content["fresh"][name]["value"][METRIC])
    scored = {name: Scores(each["value"], each["without"]) for name, each in content["fresh"].items()}
    for found in content["repetitions"]:
        print(verdict(scored, found["tuned"], best, METRIC, found["samples"] / grid_samples))


def finished_run(
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
    """Check the tuner on a finished run.

    Args:
        run_config: config of the finished run.
        search: file of the search space, with one objective, lowest.
        out: folder of all results.
        repetitions: number of searches.
        budget: samples of each search; default: 5 % of the grid's.
        block: samples in a block of the tuner; default: as in the grid.
        top: number of the grid's best points that are scored on the fresh samples; the best of them there represents
            the grid. For a grid of few samples per point.
        fresh_blocks: blocks of fresh samples for each choice.
        first_seed: seed of the first search; each next one is 10 higher.
    """
    folder, written = Path(out), read_yaml(search)
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
        own = _write(written | changed, folder / f"tune_{repetition}.yaml")
        options = ["--out", str(folder / f"tune_{repetition}"), "--budget", str(budget or samples // 20)]
        lightning_guide(["tune", run_config, own, *options])
        found = json.loads((folder / f"tune_{repetition}" / "tune.json").read_text())
        chosen.append((found["winners"][objective.metric]["name"], found["samples"] / samples))
    fresh: dict[str, Scores] = {}
    for name in dict.fromkeys([*leading, *(name for name, _ in chosen)]):
        if not axes[name]:  # no guidance: every sweep scores it
            continue
        values = axes[name]
        only = {axis: {**each, "values": [values[axis]], "prior": values[axis]} for axis, each in varied.items()}
        rescored = {"axes": only, "seed": FRESH_SEED, "blocks": fresh_blocks}
        target = folder / "fresh" / "_".join(str(value) for value in values.values())
        target.parent.mkdir(exist_ok=True)
        own = _write(written | rescored, Path(f"{target}.yaml"))
        lightning_guide(["sweep", run_config, own, "--out", str(target)])
        scored = json.loads((target / "results.json").read_text())["points"]
        fresh |= {each: _scores(row) for each, row in scored.items()}
    best = min(leading, key=lambda name: objective.loss(fresh[name]))
    for name, spent in chosen:
        print(verdict(fresh, name, best, objective.metric, spent))


def verdict(fresh: Mapping[str, Scores], tuned: str, best: str, metric: str, spent: float) -> str:
    """Compare `tuned` with the grid's `best`, for a metric to be minimized.

    The tuner held if `tuned` is at most 5 %, or at most the interval, above `best`.
    """
    apart: Estimate = difference(fresh[tuned], fresh[best], metric)
    relative = apart.value / fresh[best].values[metric]
    held = relative <= 0.05 or apart.value <= apart.half_width
    return (
        f"{'held' if held else 'MISSED'}: tuned {tuned}: {fresh[tuned].estimate(metric)}; grid {best}: "
        f"{fresh[best].estimate(metric)}; apart {apart} ({relative:+.1%}), {spent:.1%} of the samples"
    )


def _scores(point: dict[str, Any]) -> Scores:
    return Scores(point["values"], point["without"])


def _write(content: dict[str, Any], path: Path) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


if __name__ == "__main__":
    run_script([fractal2d, finished_run])
