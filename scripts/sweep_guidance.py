"""Sweeps guider age and weight of a finished run and scores each point over several sampling seeds.

    python scripts/sweep_guidance.py configs/cifar8/main.yaml --ages '["1/3.5","1/1.8"]' --weights '[1.5,2]' \
        --cfg_weights '[1.25,1.5]' --seeds 5 --out runs/cifar8/sweep

Writes the evaluations as a config (`sweep.yaml`), runs them by `lightning-guide test`, and sums up mean and 95 %
interval (Student's t over the seeds) of every metric in `summary.json` and a table.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import yaml
from jsonargparse import auto_cli
from matplotlib import pyplot as plt

from lightning_guide.cli import main as lightning_guide

# Student's t, 97.5 % quantile by degrees of freedom
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def sweep(
    config: str,
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
    num_steps: int = 12,
) -> None:
    """Runs the sweep.

    Args:
        config: config of the finished run.
        out: folder for the results.
        ages: guider ages, fractions of the planned run.
        weights: weights of autoguidance.
        cfg_weights: weights of classifier-free guidance.
        guider_sigma_rel: width of the guider's average.
        seeds: number of sampling seeds; all points share them.
        first_seed: the first of them.
        num_samples: samples for each point and seed.
        batch_size: samples in one network call.
        num_steps: steps of the Heun sampler.
    """
    points: dict[str, dict | None] = {"unguided": None}
    for age in ages:
        guider = {"class_path": "Snapshot", "init_args": {"images": age, "sigma_rel": guider_sigma_rel}}
        for weight in weights:
            points[f"autoguidance {age} w={weight:g}"] = {
                "class_path": "Autoguidance",
                "init_args": {"weight": weight, "guider": guider},
            }
    for weight in cfg_weights:
        points[f"cfg w={weight:g}"] = {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": weight}}
    sampler = {
        "class_path": "lightning_guide.samplers.Heun",
        "init_args": {
            "grid": {"class_path": "lightning_guide.noise.KarrasGrid", "init_args": {"num_steps": num_steps}}
        },
    }
    evaluations = {}
    for name, guidance in points.items():
        for seed in range(first_seed, first_seed + seeds):
            evaluation = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed, "sampler": sampler}
            evaluations[f"{name} seed={seed}"] = evaluation | ({"guidance": guidance} if guidance else {})
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "sweep.yaml"
    report = {"class_path": "callbacks.MetricsReport", "init_args": {"folder": str(folder)}}
    written.write_text(
        yaml.safe_dump(
            {
                "trainer": {"callbacks": [report], "logger": False, "enable_progress_bar": False},
                "model": {"init_args": {"evaluations": evaluations}},
            },
            sort_keys=False,
        )
    )
    lightning_guide(["test", "-c", config, "-c", str(written)])
    results = json.loads((folder / "metrics.json").read_text())
    summary = {name: _summary([results[f"{name} seed={s}"] for s in range(first_seed, first_seed + seeds)]) for name in points}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    _print(summary)
    _draw(summary, ages, weights, cfg_weights, folder / "sweep.png")


def _summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and half width of the 95 % interval of each metric."""
    summary = {}
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        summary[metric] = {"mean": statistics.fmean(values), "half_width": half}
    return summary


def _print(summary: dict[str, dict[str, dict[str, float]]]) -> None:
    metrics = [metric for metric in next(iter(summary.values())) if metric not in ("samples", "seconds")]
    print(f"{'':32}" + "".join(f"{metric:>20}" for metric in metrics))
    for name, values in summary.items():
        cells = [f"{values[m]['mean']:.3f} +- {values[m]['half_width']:.3f}" for m in metrics]
        print(f"{name:32}" + "".join(f"{cell:>20}" for cell in cells))


def _draw(summary: dict, ages: list[str], weights: list[float], cfg_weights: list[float], path: Path) -> None:
    """FD against weight, one curve for each guider age."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    curves = {f"autoguidance, guider at {age}": [f"autoguidance {age} w={w:g}" for w in weights] for age in ages}
    curves |= {"CFG": [f"cfg w={w:g}" for w in cfg_weights]} if cfg_weights else {}
    for label, names in curves.items():
        x = [1.0, *(cfg_weights if label == "CFG" else weights)]
        points = [summary["unguided"]["fd"], *(summary[name]["fd"] for name in names)]
        axes.errorbar(x, [p["mean"] for p in points], [p["half_width"] for p in points], label=label, capsize=3, marker="o")
    axes.set(xlabel="guidance weight", ylabel="Fréchet distance (classifier features)", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    auto_cli(sweep)
