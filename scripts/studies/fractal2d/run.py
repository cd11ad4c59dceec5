"""The 2D fractal with exact scores: five seeds, four methods, and the learned densities.

    python -m scripts.studies.fractal2d.run [--seeds 5] [--jobs 2] [--out runs/fractal2d/study] [--published_rate true]

Each seed trains three networks (main: class A, width 64, 4096 steps; small: class A, width 32, 512 steps; both: classes
A and B, width 32, 512 steps), then draws 16,384 samples for each method. This is the published recipe except for the
learning rate, which is that of configs/fractal2d unless `--published_rate` is set. Writes `summary.json` (mean and 95 %
interval over the seeds) and `densities.png` (Karras et al. 2024, https://arxiv.org/abs/2406.02507, figure 9).
Interrupted runs continue.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib import pyplot as plt

from lightning_guide.denoiser import Denoiser
from lightning_guide.report.metrics_file import metric_values
from lightning_guide.runs.models import finished_model
from scripts.lib.command_line import run_script
from scripts.lib.seed_summary import show, summarize

WIDTH = 0.01  # sigma_rel of every model here
LEVELS = (0.5, 0.25, 0.08, 0.03, 0.01)
PUBLISHED_RATE = {
    "learning_rate": {
        "class_path": "lightning_guide.training.InverseSqrtRate",
        "init_args": {"peak": 0.01, "decay_images": 512 * 4096},
    }
}
METRICS = ("outliers", "total_variation", "lost_mass", "mean_log_density", "sliced_wasserstein")


def study(
    *,
    seeds: int = 5,
    jobs: int = 2,
    out: str = "runs/fractal2d/study",
    num_samples: int = 16384,
    published_rate: bool = False,
) -> None:
    """Train, evaluate and draw.

    Args:
        seeds: number of seeds, each for training and sampling.
        jobs: seeds that run in parallel, one thread each.
        out: folder for runs and results.
        num_samples: samples for each method and seed.
        published_rate: train at the published learning rate, 0.01 decaying after 512 steps, without cooldown.
    """
    folder = Path(out)
    rate = PUBLISHED_RATE if published_rate else {}

    def run(seed: int) -> dict[str, dict[str, float]]:
        return _one_seed(folder / f"seed-{seed}", seed, num_samples, rate)

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(run, range(seeds)))
    summary = {name: summarize([result[name] for result in results]) for name in results[0]}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    show(summary, METRICS)
    _draw_densities(folder / "seed-0", folder / "densities.png")


def _one_seed(folder: Path, seed: int, num_samples: int, rate: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Train and evaluate all models of one seed."""
    for name, classes in (("unconditional", "AB"), ("small", "A"), ("main", "A")):
        exact = {"class_path": "lightning_guide.distributions.FractalTree", "init_args": {"classes": classes}}
        settings: dict[str, Any] = {
            "seed_everything": seed,
            "trainer": {
                "default_root_dir": str(folder / name),
                "limit_val_batches": 0,
                "enable_progress_bar": False,
            },
            "model": {"init_args": {"seed": seed, "loss": {"init_args": {"exact": exact}}} | rate},
            "data": {"init_args": {"seed": seed}},
        }
        _command("fit", f"configs/fractal2d/{name}.yaml", _written(folder / f"{name}.yaml", settings))
    report = {"class_path": "callbacks.MetricsReport", "init_args": {"folder": str(folder)}}
    settings = {
        "trainer": {
            "default_root_dir": str(folder / "main"),
            "callbacks": [report],
            "logger": False,
            "enable_progress_bar": False,
        },
        "model": {"init_args": {"evaluations": _evaluations(folder, seed, num_samples)}},
    }
    _command("test", "configs/fractal2d/main.yaml", _written(folder / "report.yaml", settings))
    return metric_values(json.loads((folder / "metrics.json").read_text()))


def _evaluations(folder: Path, seed: int, num_samples: int) -> dict[str, Any]:
    """Build evaluations: unguided, both kinds of autoguidance, classifier-free guidance and naive truncation."""

    def guider(**place: Any) -> dict[str, Any]:
        return {"class_path": "Snapshot", "init_args": {"sigma_rel": WIDTH, **place}}

    small, earlier = guider(run=str(folder / "small")), guider(images="1/8")
    both = guider(run=str(folder / "unconditional"))
    guidances: dict[str, dict[str, Any] | None] = {"unguided": None}
    for weight in (2.0, 3.0):
        arguments = {"weight": weight, "guider": small}
        guidances[f"autoguidance_small_{weight:g}"] = {"class_path": "Autoguidance", "init_args": arguments}
    arguments = {"weight": 2.0, "guider": earlier}
    guidances["autoguidance_earlier_2"] = {"class_path": "Autoguidance", "init_args": arguments}
    arguments = {"weight": 4.0, "unconditional": both}
    guidances["cfg_4"] = {"class_path": "ClassifierFreeGuidance", "init_args": arguments}
    guidances["truncation_1_4"] = {"class_path": "ScoreScaling", "init_args": {"scale": 1.4}}
    truth = {"class_path": "lightning_guide.distributions.FractalTree", "init_args": {"classes": "A"}}
    grid = {
        "class_path": "lightning_guide.noise.KarrasGrid",
        "init_args": {"num_steps": 32, "sigma_min": 0.002, "sigma_max": 5},
    }
    sampler = {"class_path": "lightning_guide.samplers.Heun", "init_args": {"grid": grid}}
    common = {"num_samples": num_samples, "batch_size": num_samples, "seed": seed, "start": truth, "sampler": sampler}
    return {name: common | ({"guidance": guidance} if guidance else {}) for name, guidance in guidances.items()}


def _written(path: Path, settings: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def _command(name: str, *configs: str) -> None:
    """Run `lightning-guide NAME -c CONFIG ...` in a new process with one thread."""
    command = [sys.executable, "-m", "lightning_guide.cli", name]
    for config in configs:
        command += ["-c", config]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


@torch.no_grad()
def _draw_densities(folder: Path, path: Path) -> None:
    """Draw learned densities of main model and guider and their ratio, by noise level, for both guidances."""
    models = {
        "main": finished_model(folder / "main", None, WIDTH),
        "CFG guider": finished_model(folder / "unconditional", None, WIDTH),
        "autoguidance guider": finished_model(folder / "small", None, WIDTH),
    }
    side = torch.linspace(-0.9, 1.5, 240)
    x = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
    titles = ["main", "CFG guider", "main / CFG guider", "autoguidance guider", "main / autoguidance guider"]
    figure, axes = plt.subplots(len(LEVELS), len(titles), figsize=(15, 15), layout="constrained")
    for row, sigma in zip(axes, LEVELS, strict=True):
        logs = {name: _normalized(model, x, sigma) for name, model in models.items()}
        logs["main / CFG guider"] = logs["main"] - logs["CFG guider"]
        logs["main / autoguidance guider"] = logs["main"] - logs["autoguidance guider"]
        support = logs["main"] > logs["main"].max() - 12
        for axis, title in zip(row, titles, strict=True):
            values = logs[title].clone()
            ratio = "/" in title
            if ratio:
                values[~support] = math.nan
            style = {"cmap": "RdBu_r", "vmin": -4, "vmax": 4} if ratio else {"vmin": float(values.max()) - 8}
            axis.imshow(values.reshape(240, 240), origin="lower", extent=(-0.9, 1.5, -0.9, 1.5), **style)
            axis.set(xticks=[], yticks=[])
            if sigma == LEVELS[0]:
                axis.set_title(f"log {title}" if ratio else title)
        row[0].set_ylabel(f"sigma = {sigma:g}")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _normalized(model: Denoiser, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the log-density of a network on the grid `x`, normalized over it."""
    values = model.log_density(x, torch.tensor(sigma)).cpu()  # type: ignore[operator]
    return values - values.logsumexp(0)


if __name__ == "__main__":
    run_script(study)
