"""Guider ages and weights of autoguidance and weights of CFG for a finished run, over several sampling seeds.

    python -m scripts.studies.guidance.sweep_weights configs/cifar8/main.yaml --ages '["1/3.5","1/1.8"]' \\
        --weights '[1.5,2]' --cfg_weights '[1.25,1.5]' --seeds 5 --out runs/cifar8/sweep

Writes the evaluations as a config (`evaluations.yaml`), runs them by `lightning-guide test`, and writes mean and 95 %
interval (Student's t over the seeds) of every metric to `summary.json` and a table; `fd_change` is relative to the
unguided samples of the same seed.

This script printed the tables for CIFAR-10 in README.md. `lightning-guide sweep` is more general (any axis, resumable
point by point), but its intervals are over blocks of one seed; this script is kept for intervals over seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver
from scripts.lib.evaluations import over_seeds
from scripts.lib.seed_summary import show


def sweep(
    run_config: str,
    *,
    out: str,
    ages: list[str],
    weights: list[float],
    cfg_weights: list[float] = [],  # noqa: B006
    guider_sigma_rel: float = 0.1,
    seeds: int = 5,
    first_seed: int = 0,
    num_samples: int = 1000,
    batch_size: int = 250,
    sampler: Solver = "Heun",
    num_steps: int = 12,
) -> None:
    """Run the sweep.

    Args:
        run_config: config of the finished run.
        out: folder for the results.
        ages: guider ages, fractions of the planned run.
        weights: weights of autoguidance.
        cfg_weights: weights of classifier-free guidance.
        guider_sigma_rel: width of the guider's average.
        seeds: number of sampling seeds; all points share them.
        first_seed: first sampling seed.
        num_samples: samples for each point and seed.
        batch_size: samples in one network call.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
    """
    common = {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    points: dict[str, dict[str, Any]] = {"unguided": common}
    for age in ages:
        guider = class_config("Snapshot", images=age, sigma_rel=guider_sigma_rel)
        for weight in weights:
            guidance = class_config("Autoguidance", weight=weight, guider=guider)
            points[f"autoguidance {age} w={weight:g}"] = common | {"guidance": guidance}
    for weight in cfg_weights:
        guidance = class_config("ClassifierFreeGuidance", weight=weight)
        points[f"cfg w={weight:g}"] = common | {"guidance": guidance}
    folder = Path(out)
    summary = over_seeds(run_config, points, range(first_seed, first_seed + seeds), folder)
    show(summary, [metric for metric in summary["unguided"] if metric not in ("samples", "seconds")])
    _draw(summary, ages, weights, cfg_weights, folder / "sweep.png")


def _draw(summary: dict, ages: list[str], weights: list[float], cfg_weights: list[float], path: Path) -> None:
    """Draw FD against weight, one curve for each guider age."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    curves = {f"autoguidance, guider at {age}": [f"autoguidance {age} w={w:g}" for w in weights] for age in ages}
    curves |= {"CFG": [f"cfg w={w:g}" for w in cfg_weights]} if cfg_weights else {}
    for label, names in curves.items():
        x = [1.0, *(cfg_weights if label == "CFG" else weights)]
        points = [summary["unguided"]["fd"], *(summary[name]["fd"] for name in names)]
        means, halves = [p["mean"] for p in points], [p["half_width"] for p in points]
        axes.errorbar(x, means, halves, label=label, capsize=3, marker="o")
    axes.set(xlabel="guidance weight", ylabel="Fréchet distance (classifier features)", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_script(sweep)
