"""Does tuning with a twentieth of the samples find what the full grid finds? The 2D fractal, ten repetitions.

    python scripts/tune_study.py --run runs/fractal2d/main --out runs/fractal2d/tune_study

The whole grid of configs/search/fractal.yaml is drawn once. Each repetition lets the tuner loose on samples of its own,
5 % of their number. Its choice and the best point of the grid, or no guidance where that is better, are scored again on
200,000 fresh samples, the same for all. Writes `study.json` after every step; begun again, it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.exact_density import (
    QUANTILES,
    TRUE_SAMPLES,
    sliced_quantiles,
    sliced_wasserstein,
)
from lightning_guide.guidance import Autoguidance
from lightning_guide.noise import KarrasGrid
from lightning_guide.runs.run import open_snapshots
from lightning_guide.samplers import DPMSolver2M
from lightning_guide.search.config import read_search
from lightning_guide.search.halving import Halving
from lightning_guide.search.scores import Estimate, ScoreBlock, Scorer, Scores, difference, leave_one_out
from lightning_guide.search.space import UNGUIDED, Place, Space
from lightning_guide.seeds import SampleSeeds

METRIC = "sliced_wasserstein"
GRID_PART, TUNE_PART, FRESH_PART = 2048, 512, 10_000  # points in one call
FRESH_SEED = 10**6


class Points(Scorer):
    """Points of the fractal's model at any place of the space, drawn part by part and kept in memory."""

    def __init__(self, run: str, space: Space, size: int, *, part: int) -> None:
        """`part` points at a time, a multiple of the `size` of a block."""
        self.space, self.size, self.at_once = space, size, part
        self.store = open_snapshots(run)
        self.sampler = DPMSolver2M(KarrasGrid(16, sigma_min=0.002, sigma_max=5.0))
        truth = FractalTree("A")
        self.start = Evaluation(start=truth)
        self.quantiles = sliced_quantiles(truth.sample(TRUE_SAMPLES, torch.Generator().manual_seed(0))[0], QUANTILES)
        self.parts: dict[tuple[Place, int, int], Tensor] = {}
        self.models: dict[tuple[int, float], Denoiser] = {}

    def model(self, images: int, sigma_rel: float) -> Denoiser:
        """An average of the run."""
        if (images, sigma_rel) not in self.models:
            self.models[images, sigma_rel] = self.store.guider(images=images, sigma_rel=sigma_rel)
        return self.models[images, sigma_rel]

    def denoiser(self, place: Place) -> Denoiser:
        """The model at a place; no guidance is that of the widths 0.05 alone."""
        if place == UNGUIDED:
            return self.model(2097152, 0.05)
        values = self.space.values(place)
        guider, main = (values["age"], values["sigma_rel"]), (2097152, values["main_sigma_rel"])
        return Autoguidance(self.model(*guider), values["weight"], positive=self.model(*main))

    def part(self, place: Place, seed: int, number: int) -> Tensor:
        """Points number * part ... of a seed."""
        if (place, seed, number) not in self.parts:
            seeds = SampleSeeds(seed, range(number * self.at_once, (number + 1) * self.at_once))
            drawn = self.sampler.sample(
                self.denoiser(place), seeds=seeds, start=lambda noise: self.start.initial(noise, seeds)
            )
            self.parts[place, seed, number] = drawn.x
        return self.parts[place, seed, number]

    def drawn(self, place: Place) -> set[ScoreBlock]:
        """Never asked for here."""
        return set()

    def draw(self, place: Place, blocks: Sequence[ScoreBlock]) -> None:
        """Nothing: `part` draws what is needed."""

    def scores(self, place: Place, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        """The sliced Wasserstein distance."""
        per_part = self.at_once // self.size
        rows = [
            self.part(place, seed, number // per_part)[number % per_part * self.size :][: self.size]
            for seed, number in blocks
        ]
        return Scores(self._score(rows), [self._score(union) for union in leave_one_out(rows)] if interval else [])

    def _score(self, rows: Sequence[Tensor]) -> dict[str, float]:
        return {METRIC: float(sliced_wasserstein(torch.cat(list(rows)), self.quantiles))}


def study(
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
    """Runs the study.

    Args:
        run: the finished run of configs/fractal2d/main.yaml.
        out: folder of `study.json`.
        search: the space.
        repetitions: how often.
        budget: samples of each search; default: 5 % of the grid's.
        top: so many of the grid's best points are scored on the fresh samples, and the best of them there stands for
            the grid: for a budget that is 5 % of a finer grid.
        fresh: samples of the last scores.
        first_seed: of the searches; each next one is 10 higher.
    """
    torch.set_num_threads(1)
    file = read_search(search)
    evaluation: dict[str, Any] = dict(file.evaluation)
    space = Space(evaluation, file.axes)
    path = Path(out) / "study.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"grid": {}, "repetitions": [], "fresh": {}}
    if path.exists():
        content = json.loads(path.read_text())
    by_name = {space.name(place): place for place in [UNGUIDED, *space.places]}
    grid_samples = len(space.places) * file.block * file.blocks
    blocks = [ScoreBlock(0, number) for number in range(file.blocks)]
    for name, place in by_name.items():
        if name not in content["grid"]:
            scorer = Points(run, space, file.block, part=GRID_PART)
            content["grid"][name] = scorer.scores(place, blocks, interval=False).values[METRIC]
            path.write_text(json.dumps(content, indent=1))
    leading = sorted(content["grid"], key=content["grid"].get)[:top]
    for repetition in range(len(content["repetitions"]), repetitions):
        scorer = Points(run, space, file.block, part=TUNE_PART)
        seed = first_seed + 10 * repetition
        halving = Halving(space, scorer, file.objectives, budget=budget or grid_samples // 20, seed=seed)
        found = halving.run()
        finalists = {space.name(place): each.values[METRIC] for place, each in found.raced.fresh.items()}
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
    _report(content, best, grid_samples)


def verdict(fresh: Mapping[str, Scores], tuned: str, best: str, metric: str, spent: float) -> str:
    """Whether `tuned` is at most 5 %, or no more than the interval, above the grid's `best`; for a metric to be low."""
    apart: Estimate = difference(fresh[tuned], fresh[best], metric)
    relative = apart.value / fresh[best].values[metric]
    held = relative <= 0.05 or apart.value <= apart.half_width
    return (
        f"{'held' if held else 'MISSED'}: tuned {tuned}: {fresh[tuned].estimate(metric)}; grid {best}: "
        f"{fresh[best].estimate(metric)}; apart {apart} ({relative:+.1%}), {spent:.1%} of the samples"
    )


def _report(content: dict[str, Any], grid_best: str, grid_samples: int) -> None:
    """Prints one line for each repetition."""
    fresh = {name: Scores(each["value"], each["without"]) for name, each in content["fresh"].items()}
    for repetition in content["repetitions"]:
        print(verdict(fresh, repetition["tuned"], grid_best, METRIC, repetition["samples"] / grid_samples))


if __name__ == "__main__":
    auto_cli(study)
