"""Self-consuming loops, in which models are trained on samples of their predecessors: standard and with SIMS.

    python -m scripts.studies.sims.self_consuming --out runs/self_consuming                 # Gaussians, one figure
    python -m scripts.studies.sims.self_consuming --out runs/self_consuming --fractal 10    # and small networks

Gaussians: thousands of loops of 100 points a generation, fully synthetic and augmented by 100 fixed real points, with
quantile bands. The fractal: every generation is trained by `lightning-guide fit` on samples of the previous one, with
and without SIMS; finished generations are not repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_guide.cli import main as lightning_guide
from lightning_guide.report.metrics_file import metric_values
from lightning_guide.runs.models import open_snapshots
from scripts.lib.command_line import run_script
from scripts.lib.configs import class_config, write_settings
from scripts.studies.sims.gaussian_loop import self_consuming

WIDTH = 0.05  # sigma_rel of every network here
METRICS = ("outliers", "total_variation", "lost_mass")


def loops(
    *,
    out: str,
    generations: int = 100,
    replicas: int = 2000,
    count: int = 100,
    omega: float = 1.0,
    seed: int = 0,
    fractal: int = 0,
    steps: int = 256,
    samples: int = 4096,
    weight: float = 1.5,
) -> None:
    """Run the loops and draw them.

    Args:
        out: folder for figures, numbers and runs.
        generations: generations of the Gaussian loops.
        replicas: Gaussian loops of each kind.
        count: points drawn from the predecessor in each generation.
        omega: strength of SIMS on Gaussians.
        seed: seed of everything.
        fractal: generations of networks on the 2D fractal; 0 leaves them out.
        steps: training steps of each network, in batches of 2048.
        samples: samples drawn from the predecessor in each generation of networks.
        weight: w = 1 + omega of SIMS on the fractal.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    kinds = {
        f"{data}, {method}": self_consuming(
            generations, replicas, generator, count=count, omega=strength, augmented=augmented
        )[1].sqrt()
        for data, augmented in (("fully synthetic", False), ("augmented", True))
        for method, strength in (("standard", 0.0), (f"SIMS, omega = {omega:g}", omega))
    }
    _draw_gaussians(kinds, folder / "gaussians.png", f"{replicas} loops, {count} points a generation")
    for name, spread in kinds.items():
        shown = [g for g in (10, 50, 100) if g <= generations]
        print(f"{name:32}" + "".join(f"  {g}: {_quantiles(spread[g])}" for g in shown))
    if fractal:
        results = {kind: _networks(folder / kind, fractal, kind, steps, samples, weight, seed) for kind in KINDS}
        (folder / "fractal.json").write_text(json.dumps(results, indent=1))
        _draw_networks(results, folder / "fractal.png", f"{samples} points a generation, {steps} steps")


def _quantiles(spread: Tensor) -> str:
    low, median, high = spread.quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def _draw_gaussians(kinds: dict[str, Tensor], path: Path, title: str) -> None:
    """Draw the standard deviation against the generation: median, 25 to 75 % and 5 to 95 %."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.6 * len(kinds), 3.6), layout="constrained", sharey=True)
    for axis, (name, spread) in zip(axes, kinds.items(), strict=True):
        low, quarter, median, most, high = spread.quantile(levels, dim=1)
        x = range(len(median))
        axis.fill_between(x, low, high, alpha=0.15, color="C0", label="5 to 95 %")
        axis.fill_between(x, quarter, most, alpha=0.3, color="C0", label="25 to 75 %")
        axis.plot(x, median, color="C0", label="median")
        axis.axhline(1, color="black", linewidth=1, linestyle=":", label="true value")
        axis.set(title=name, xlabel="generation", yscale="log", ylim=(0.08, 12))
    axes[0].set_ylabel("standard deviation")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# Networks

KINDS = ("standard", "sims")
GRID = {
    "class_path": "lightning_guide.noise.KarrasGrid",
    "init_args": {"num_steps": 16, "sigma_min": 0.002, "sigma_max": 5},
}
SAMPLER = {"class_path": "lightning_guide.samplers.DPMSolver2M", "init_args": {"grid": GRID}}
TRUTH = {"class_path": "lightning_guide.distributions.FractalTree", "init_args": {"classes": "A"}}
POINTS = {
    "class_path": "datamodules.Points",
    "init_args": {"distribution": TRUTH, "heldout_size": 1024, "training_size": 4096, "batch_size": 2048},
}


def _networks(
    folder: Path, generations: int, kind: str, steps: int, samples: int, weight: float, seed: int
) -> list[dict[str, float]]:
    """Return metrics of each generation; generation 0 is trained on the true distribution."""
    results = []
    data: dict[str, Any] = POINTS
    for number in range(generations + 1):
        run, auxiliary = folder / f"{number:02d}", folder / f"{number:02d}-auxiliary"
        _fit(run, data, steps, seed + number, model=None)
        guidance = None
        if kind == "sims":
            own = _synthetic(run, auxiliary / "synthetic", samples, None, seed + number)
            _fit(auxiliary, own, max(1, steps // 8), seed + number, model=run)
            guided = class_config("Snapshot", run=str(auxiliary), images="1/1", sigma_rel=WIDTH)
            guidance = class_config("SIMS", auxiliary=guided, weight=weight)
        results.append(_score(run, guidance, seed))
        data = _synthetic(run, folder / f"{number:02d}-synthetic", samples, guidance, seed + number)
        print(kind, number, {name: round(results[-1][name], 4) for name in METRICS}, flush=True)
    return results


def _synthetic(run: Path, folder: Path, samples: int, guidance: Any, seed: int) -> dict[str, Any]:
    """Build the config of data that are samples of `run`."""
    settings = {"run": str(run), "folder": str(folder), "num_samples": samples, "sigma_rel": WIDTH, "data": POINTS}
    settings |= {"guidance": guidance, "sampler": SAMPLER, "sampling_seed": seed, "chunk_size": samples}
    return class_config("datamodules.SelfSynthesized", **settings, batch_size=2048)


def _fit(run: Path, data: dict[str, Any], steps: int, seed: int, *, model: Path | None) -> None:
    """Train a network from scratch, or from `model` at a tenth of the rate."""
    images = steps * 2048
    rate, noise = "lightning_guide.training.InverseSqrtRate", "lightning_guide.noise.LogNormal"
    network = class_config("LogDensityMLP", width=32)
    if model is not None:
        network = class_config("lightning_guide.runs.pretrained", run=str(model), sigma_rel=WIDTH)
    arguments = {
        "denoiser": network,
        "loss": class_config("ScoreMatchingLoss", noise=class_config(noise, mean=-2.3, std=1.5)),
        "learning_rate": class_config(rate, peak=0.04 if model is None else 0.004, decay_images=images),
        "average": WIDTH,
        "seed": seed,
        "evaluations": {"unguided": _drawn()},
        "metrics": {"density": class_config("DensityMetrics", distribution=TRUTH)},
    }
    averages = class_config("callbacks.PostHocEMA", sigma_rels=[WIDTH], every_images=images)
    settings = {
        "seed_everything": seed,
        "trainer": _trainer(run, [averages]) | {"max_steps": steps},
        "model": class_config("DiffusionModule", **arguments),
        "data": data,
    }
    write_settings(run / "fit.yaml", settings, done=run / "done")
    if not (run / "done").exists():
        lightning_guide(["fit", "-c", str(run / "fit.yaml")])
        if open_snapshots(run).entries()[-1].images < images:
            raise SystemExit(f"{run} was stopped; run the same command to continue")
        (run / "done").touch()


def _score(run: Path, guidance: Any, seed: int) -> dict[str, float]:
    """Return metrics of the samples of `run`, guided or not, against the exact density."""
    report = class_config("callbacks.MetricsReport", folder=str(run / "report"))
    evaluation = _drawn() | {"seed": seed} | ({"guidance": guidance} if guidance else {})
    settings = {
        "trainer": _trainer(run, [report]),
        "model": {"init_args": {"evaluations": {"unguided": evaluation}}},
        "data": POINTS,
    }
    metrics = run / "report/metrics.json"
    write_settings(run / "score.yaml", settings, done=metrics)
    if not metrics.exists():
        lightning_guide(["test", "-c", str(run / "fit.yaml"), "-c", str(run / "score.yaml")])
    return metric_values(json.loads(metrics.read_text()))["unguided"]


def _drawn() -> dict[str, Any]:
    return {"num_samples": 4096, "batch_size": 4096, "sampler": SAMPLER}


def _trainer(run: Path, callbacks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "default_root_dir": str(run),
        "callbacks": callbacks,
        "accelerator": "cpu",
        "devices": 1,
        "limit_val_batches": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _draw_networks(results: dict[str, list[dict[str, float]]], path: Path, title: str) -> None:
    """Draw each metric against the generation."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.6), layout="constrained")
    for axis, metric in zip(axes, METRICS, strict=True):
        for kind, generations in results.items():
            axis.plot([each[metric] for each in generations], marker="o", markersize=4, label=kind)
        axis.set(title=metric, xlabel="generation", ylim=(0, None))
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    run_script(loops)
