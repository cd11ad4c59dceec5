"""Paths guided to a goal around an obstacle: step rules and random augmentation.

    python -m scripts.studies.training_free.motion --run runs/motion/main --out runs/training_free/motion

A model of walking-like paths (configs/motion/train.yaml) under the losses of Shen et al. 2024,
https://arxiv.org/abs/2403.12404, table 3: |goal - x(T)|^2 + 100 mean sigmoid(-50 (|x - center| - radius)), the obstacle
halfway to the goal. Four gaits, three directions each. Guidance keeps a margin of 0.2 m around the obstacle, as in the
published code; paths are scored without that margin. Compared are FreeDoM; with random augmentation of the path (10
copies that stray by 0.2 m until they reach the obstacle); with Polyak's step; with both; the last two with a cap; and
LGD-MC and the normalized step of the published motion code. Each rate is tuned by the same five trials in a fourth
direction: the smallest total loss among the rates that add at most `slack` unnatural paths to those without guidance. A
path is unnatural if its largest second difference is above the 99 % quantile of the held-out paths of its gait. Samples
are independent of each other: groups of them serve as seeds and are drawn in one batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from datamodules.motion import GAITS, Trajectories
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import (
    AddedNoise,
    Augmented,
    AugmentedPolyak,
    EnergyGuidance,
    FreeDoM,
    LossGuidedDiffusion,
    NormalizedStep,
    ThroughDenoiser,
)
from lightning_guide.guidance.training_free.augmentations import Augmentation
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy, Goal, Integrated, Obstacle, WeightedSum
from lightning_guide.runs.models import finished_model
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from scripts.lib.command_line import run_script
from scripts.lib.results import write
from scripts.lib.seed_summary import show, summarize

DISTANCES = {"walking": 6 * math.sqrt(2), "backwards": 3.6, "balance beam": 2.6, "jogging": 8 * math.sqrt(2)}
RADII = {"walking": 1.0, "backwards": 0.5, "balance beam": 0.4, "jogging": 1.0}
DIRECTIONS = {"45": math.pi / 4, "165": 11 * math.pi / 12, "285": 19 * math.pi / 12}
TUNING = math.pi / 2
NOISE = 0.2 / math.sqrt(32)  # meters per step: a random walk of 0.2 m at the middle, where the obstacle is
METRICS = ["target", "obstacle", "total", "hits", "unnatural"]

Make = Callable[[Energy, float, Denoiser], Denoiser]


def methods(meters: float) -> dict[str, tuple[Make, float]]:
    """Return name -> constructor, and the middle of the rates that are tried."""
    copies, drawn = Augmented([AddedNoise(NOISE / meters)], 10), [AddedNoise(NOISE / meters)]

    def polyak(drawn: Sequence[Augmentation], cap: float | None) -> Make:
        return lambda loss, rate, m: AugmentedPolyak(loss, rate, augmentations=drawn, cap=cap, positive=m)

    def normalized(loss: Energy, rate: float, model: Denoiser) -> Denoiser:
        return EnergyGuidance(loss, [ThroughDenoiser(NormalizedStep(rate))], positive=model)

    return {
        "FreeDoM": (lambda loss, rate, m: FreeDoM(loss, rate, positive=m), 0.03),
        "augmentation": (lambda loss, rate, m: FreeDoM(loss, rate, estimator=copies, positive=m), 0.03),
        "Polyak": (polyak([], None), 0.1),
        "augmentation, Polyak": (polyak(drawn, None), 0.1),
        "Polyak, capped": (polyak([], 0.3), 1.0),
        "augmentation, Polyak, capped": (polyak(drawn, 0.3), 1.0),
        "LGD-MC": (lambda loss, rate, m: LossGuidedDiffusion(loss, rate, positive=m), 0.1),
        "normalized": (normalized, 0.3),
    }


class Walkers:
    """Draw and score paths."""

    def __init__(self, run: str, *, steps: int) -> None:
        self.data = Trajectories()
        self.model = finished_model(run, None, 0.1).eval().requires_grad_(False)
        self.sampler = Euler(KarrasGrid(steps, sigma_min=0.02, sigma_max=80.0))
        real = self.data.heldout()
        assert real.labels is not None
        self.real = real.x
        self.jerks = [jerk(real.x[real.labels == i]).quantile(0.99) for i in range(len(GAITS))]

    def scene(self, gait: int, angle: float) -> tuple[Goal, Obstacle]:
        """Return the goal, and the obstacle halfway, with the margin."""
        name = GAITS[gait].name
        goal = DISTANCES[name] * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        return Goal(goal), Obstacle(goal / 2, RADII[name], margin=0.2)

    def draw(self, gait: int, angle: float, make: Make | None, rate: float, indices: range) -> Tensor:
        """Draw paths (n, 2, frames) in meters."""
        loss = Integrated(WeightedSum(self.scene(gait, angle)), self.data.meters)
        guide = self.model if make is None else make(loss, rate, self.model)
        condition = torch.full((len(indices),), gait)
        drawn = self.sampler.sample(guide, seeds=SampleSeeds(0, indices), condition=condition)
        return self.data.decode(drawn.x)

    def judge(self, paths: Tensor, gait: int, angle: float) -> dict[str, Tensor]:
        """Return metric -> values (count,); a path that is not finite, or too far away, counts with a loss of 1000."""
        goal, obstacle = self.scene(gait, angle)
        obstacle = Obstacle(obstacle.center, obstacle.radius)
        bad = ~paths.flatten(1).isfinite().all(1)
        paths = paths.where(~bad[:, None, None], 0)
        target, hit = (each.masked_fill(bad, 1e3).clamp(max=1e3) for each in (goal(paths), obstacle(paths)))
        unnatural = bad | (jerk(paths) > self.jerks[gait])
        return {
            "target": target,
            "obstacle": hit,
            "total": target + hit,
            "hits": obstacle.hit(paths).double(),
            "unnatural": unnatural.double(),
        }


def jerk(paths: Tensor) -> Tensor:
    """Return the largest second difference (n,) of paths, in meters."""
    return paths.diff(n=2, dim=2).norm(dim=1).amax(1)


def study(
    run: str = "runs/motion/main",
    out: str = "runs/training_free/motion",
    seeds: int = 5,
    count: int = 10,
    steps: int = 50,
    slack: float = 0.1,
) -> None:
    """Tune, sample, draw the figure and print the table. Finished methods are not computed again.

    Args:
        run: folder of the trained model.
        out: folder for figure and numbers.
        seeds: number of groups of samples.
        count: samples in a group, for each gait and direction.
        steps: steps of the sampler (the paper: 100).
        slack: share of unnatural paths that guidance may add in tuning.
    """
    torch.set_num_threads(1)
    walkers = Walkers(run, steps=steps)
    path = Path(out) / "motion.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rates": {}, "seeds": {}, "gaits": {}}
    for name, (make, middle) in {"unguided": (None, 0.0), **methods(walkers.data.meters)}.items():
        if name not in results["seeds"]:
            tried = {r: tuned(walkers, make, r) for r in (middle * 10 ** (k / 2) for k in range(-2, 3))} if make else {}
            fair = {r: t for r, t in tried.items() if t["unnatural"] <= results["tuning"]["unnatural"] + slack}
            rate = min(fair, key=lambda r: fair[r]["total"]) if fair else min(tried, default=0.0)
            if make is None:
                results["tuning"] = tuned(walkers, None, 0.0)
            found = {gait.name: cell(walkers, i, make, rate, seeds * count) for i, gait in enumerate(GAITS)}
            results["rates"][name] = {"rate": rate, "trials": tried}
            results["gaits"][name] = {gait: {key: float(v.mean()) for key, v in f.items()} for gait, f in found.items()}
            results["seeds"][name] = [
                {key: float(torch.cat([f[key][:, seed::seeds] for f in found.values()]).mean()) for key in METRICS}
                for seed in range(seeds)
            ]
            results["summary"] = {each: summarize(several) for each, several in results["seeds"].items()}
            write(out, "motion", results)
            print(name, rate, results["summary"][name], flush=True)
    show(results["summary"], METRICS)
    figure(walkers, results).savefig(path.with_suffix(".png"), dpi=130)


def cell(walkers: Walkers, gait: int, make: Make | None, rate: float, samples: int) -> dict[str, Tensor]:
    """Return each metric for all directions and samples, (3, samples)."""
    judged = [
        walkers.judge(walkers.draw(gait, angle, make, rate, range(samples)), gait, angle)
        for angle in DIRECTIONS.values()
    ]
    return {key: torch.stack([each[key] for each in judged]).double() for key in METRICS}


def tuned(walkers: Walkers, make: Make | None, rate: float) -> dict[str, float]:
    """Return the metrics in the direction for tuning, over 10 other samples of each gait."""
    found = []
    for gait in range(len(GAITS)):
        judged = walkers.judge(walkers.draw(gait, TUNING, make, rate, range(1000, 1010)), gait, TUNING)
        found.append({key: float(value.mean()) for key, value in judged.items()})
    return mean_of(found)


def mean_of(values: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric."""
    return {key: sum(each[key] for each in values) / len(values) for key in values[0]}


def figure(walkers: Walkers, results: dict[str, Any]) -> plt.Figure:
    """Draw paths of the walking and the jogging gait toward the first direction."""
    names = ["unguided", *methods(walkers.data.meters)]
    fig, axes = plt.subplots(2, len(names), figsize=(2.6 * len(names), 5.6), layout="constrained")
    angle = DIRECTIONS["45"]
    for row, gait in zip(axes, (0, 3), strict=True):
        goal, obstacle = walkers.scene(gait, angle)
        for axis, name in zip(row, names, strict=True):
            make, _ = {"unguided": (None, 0.0), **methods(walkers.data.meters)}[name]
            rate = results["rates"].get(name, {"rate": 0.0})["rate"]
            paths = walkers.draw(gait, angle, make, rate, range(12))
            for one in paths:
                axis.plot(*one, linewidth=0.8, color="#0072B2", alpha=0.7)
            axis.add_patch(plt.Circle(tuple(obstacle.center.tolist()), obstacle.radius, color="#CC3311", alpha=0.4))
            axis.plot(*goal.goal.tolist(), "k*", markersize=9)
            reach = 1.25 * float(goal.goal.norm())
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"{GAITS[gait].name}\n{name}")
            axis.title.set_fontsize(8)
            axis.tick_params(labelsize=6)
    return fig


if __name__ == "__main__":
    run_script(study)
