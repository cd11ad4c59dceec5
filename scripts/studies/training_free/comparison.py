"""Comparison of training-free methods on trained models, tuned at the same cost, scored by an independent network.

    lightning-guide fit -c configs/digits/unconditional.yaml     (and main.yaml, classifier.yaml)
    lightning-guide fit -c configs/digits/classifier.yaml --data.part first --trainer.default_root_dir runs/digits/guide
    lightning-guide fit -c configs/digits/noisy_classifier.yaml --trainer.max_steps 5000
    lightning-guide fit -c configs/digits/judge.yaml             (CIFAR-10 at 8x8: the same files of configs/cifar8)
    python -m scripts.studies.training_free.comparison --data digits --out runs/training_free/comparison

Problems: "label" (the target of sample i is class i modulo 10), and measurements of held-out images with noise of 0.05.
Three networks classify the samples. The guide is trained on the first half of the training images; the judge, of
another architecture, on the second half, and is not used in tuning; a third one, trained on all, gives the features.
Each method has one rate and `trials` of them on one tuning seed: three a decade apart, then always a neighbor of the
best, half a decade away. The lowest cost wins: the kernel distance to the real images of each class, in the third
network's features, mean over classes; for measurements the mean squared error on images that are not used for the
results. Every number is appended to `OUT/DATA.jsonl` when it is computed; a second call continues from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from scripts.lib.command_line import run_script
from scripts.lib.comparison_report import draw_samples, over_seeds, write_table
from scripts.lib.methods import Make, methods_for
from scripts.lib.problems import OPERATORS, SETTINGS, TUNING_SEED, Problem, Scores


class Log:
    """Results on disk, one line each; stored results are not computed again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[str, Scores] = {key: scores for key, scores in map(json.loads, lines)}

    def get(self, key: list[Any], compute: Callable[[], Scores]) -> Scores:
        """Return the scores stored under `key`; compute and store them if they are missing."""
        name = json.dumps(key)
        if name not in self.known:
            self.known[name] = compute()
            with self.path.open("a") as file:
                file.write(json.dumps([name, self.known[name]]) + "\n")
            print(name, {k: round(v, 3) for k, v in self.known[name].items()}, flush=True)
        return self.known[name]


def search_rate(cost: Callable[[float], float], trials: int) -> float:
    """Return the best of `trials` rates 10^(k / 2): k = 0, -2, 2, then always a neighbor of the best, smaller first."""
    found = {k: cost(10 ** (k / 2)) for k in (0, -2, 2)[:trials]}
    while len(found) < trials:
        best = min(found, key=lambda k: found[k])
        near = [k for k in (best - 1, best + 1) if k not in found]
        if not near:
            break
        found[near[0]] = cost(10 ** (near[0] / 2))
    return float(10 ** (min(found, key=lambda k: found[k]) / 2))


@dataclass
class Study:
    """All methods on one problem."""

    problem: Problem
    log: Log
    steps: int

    def run(self, methods: Sequence[str], seeds: int, trials: int, path: Path) -> None:
        """Tune, sample and score; write table and figure to `path` with a suffix."""
        problem, setting = self.problem, self.problem.setting
        guides: dict[str, tuple[float, Denoiser]] = {"unguided": (0.0, setting.positive)}
        given = {"real": problem.real} | ({} if problem.operator is None else {"linear estimate": problem.linear})
        rows = {name: (0.0, [self.given(name, make, seed) for seed in range(seeds)]) for name, make in given.items()}
        if problem.operator is None:
            guides["trained with labels"] = 0.0, setting.model(setting.labeled)
        for name, make in methods_for(problem.task).items():
            if not methods or name in methods:
                rate = search_rate(partial(self.cost, name, make), trials)
                guides[name] = rate, make(problem.task, rate)
        for name, (rate, guide) in guides.items():
            rows[name] = rate, [self.scores(name, rate, guide, seed) for seed in range(seeds)]
        path.parent.mkdir(parents=True, exist_ok=True)
        print(write_table(over_seeds(rows), path.with_suffix(".md")), flush=True)
        shown = {name: make(0) for name, make in given.items()}
        shown |= {name: problem.draw(guide, 0, self.steps) for name, (_, guide) in guides.items()}
        draw_samples({name: setting.data.decode(x[:10]) for name, x in shown.items()}, path.with_suffix(".png"))

    def scores(self, name: str, rate: float, guide: Denoiser, seed: int) -> Scores:
        """Scores of the samples of one seed."""
        return self.log.get(
            self.key(name, rate, seed), lambda: self.problem.score(self.problem.draw(guide, seed, self.steps), seed)
        )

    def cost(self, name: str, make: Make, rate: float) -> float:
        """Cost of one trial; infinite if samples are lost."""
        found = self.scores(name, rate, make(self.problem.task, rate), TUNING_SEED)
        return float("inf") if found["lost"] else self.problem.cost(found)

    def given(self, name: str, make: Callable[[int], Tensor], seed: int) -> Scores:
        """Scores of images that were not drawn by a model."""
        return self.log.get(self.key(name, 0.0, seed), lambda: self.problem.score(make(seed), seed))

    def key(self, name: str, rate: float, seed: int) -> list[Any]:
        """Key of the scores in the log."""
        return [self.problem.name, name, float(f"{rate:.4g}"), self.steps, self.problem.count, seed]


def study(
    data: Literal["digits", "cifar8"] = "digits",
    *,
    out: str = "runs/training_free/comparison",
    runs: str = "",
    problems: list[str] = ["label", *OPERATORS],  # noqa: B006
    methods: list[str] = [],  # noqa: B006
    seeds: int = 5,
    count: int = 100,
    steps: int = 20,
    trials: int = 6,
) -> None:
    """Tune, sample and score; then draw figures and print tables.

    Args:
        data: the handwritten digits, or CIFAR-10 at 8x8 (shards in data/cifar10).
        out: folder for numbers and figures.
        runs: folder of the finished runs; default: runs/DATA.
        problems: "label" or names of measurements.
        methods: names of methods; default: all that apply to the problem.
        seeds: number of seeds of the results.
        count: samples for each seed, tuning included.
        steps: Euler steps from sigma = 20 to 0.02.
        trials: number of rates for each method.
    """
    torch.set_num_threads(1)
    setting = SETTINGS[data](Path(runs or f"runs/{data}"))
    log = Log(Path(out) / f"{data}.jsonl")
    for name in problems:
        Study(Problem(name, setting, count), log, steps).run(methods, seeds, trials, Path(out) / f"{data}_{name}")


if __name__ == "__main__":
    run_script(study)
