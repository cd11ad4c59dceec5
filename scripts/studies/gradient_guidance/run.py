"""Gradient guidance toward an objective: naive against look-ahead, frozen against fine-tuned; figures and numbers.

    lightning-guide fit -c configs/gradient/score.yaml
    python -m scripts.studies.gradient_guidance.run subspace --out runs/gradient/study
    lightning-guide fit -c configs/gradient/digits_judge.yaml   # and configs/digits/main.yaml
    python -m scripts.studies.gradient_guidance.run digits --out runs/gradient/study_digits

Each method runs with each seed through the command line; finished runs are not repeated.
Guo et al. 2024, https://arxiv.org/abs/2404.14743, sections 6.1 and 6.2.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure

from callbacks.output import image_grid, render, write_png
from lightning_guide.cli import main as lightning_guide
from lightning_guide.distributions.subspace import Direction, basis
from lightning_guide.runs.checkpoints import newest_checkpoint
from scripts.lib.command_line import run_script
from scripts.lib.seed_summary import show, summarize

Record = dict[str, float]
Method = tuple[str, str, dict[str, Any]]  # command, config, changes of it under model.init_args

CONFIGS = Path(__file__).parents[3] / "configs" / "gradient"
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def subspace(
    *, out: str, seeds: int = 5, rounds: int = 30, goal: float = 3.0, score: str = "runs/gradient/score"
) -> None:
    """Maximize f1 with theta_2 under the score of configs/gradient/score.yaml.

    Args:
        out: folder for runs, figure and numbers.
        seeds: number of seeds.
        rounds: rounds of algorithm 1; those of algorithm 2 are set by its config.
        goal: reward at which methods are compared.
        score: folder of the run of the score network.
    """
    model = {"class_path": "Snapshot", "init_args": {"run": score, "images": "1/1", "sigma_rel": 0.1}}
    frozen = {"num_rounds": rounds, "denoiser": model}
    large = _gain(2.0)  # the naive guidance does not reach 3 with less
    methods: dict[str, Method] = {
        "G": ("test", "optimize.yaml", frozen | large | {"sampling": {"guidance": {"class_path": "NaiveGradient"}}}),
        "G_loss": ("test", "optimize.yaml", frozen),
        "no Jacobian": (
            "test",
            "optimize.yaml",
            frozen | large | {"sampling": {"guidance": {"class_path": "LookAheadWithoutJacobian"}}},
        ),
        "mean refit": ("fit", "mean_refit_trained.yaml", {"denoiser": _class("optimization.Shifted", denoiser=model)}),
        "all weights": ("fit", "fine_tune.yaml", {"denoiser": model}),
        "low rank": ("fit", "low_rank.yaml", {"denoiser": _class("optimization.LowRank", denoiser=model, rank=4)}),
        "last round only": ("fit", "fine_tune.yaml", {"denoiser": model, "replay": _class("optimization.LatestOnly")}),
    }
    folder = Path(out)
    runs = {
        name: [_run(method, seed, folder / name.replace(" ", "_")) for seed in range(seeds)]
        for name, method in methods.items()
    }
    start = {key: _mean([run[0][key] for run in runs["G_loss"]]) for key in ("off_ratio", "off_norm", "objective")}
    summary = {}
    for name, each in runs.items():
        rows = []
        for run in each:
            near = min(run, key=lambda record: abs(record["objective"] - goal))
            best = max(run, key=lambda record: record["objective"])
            near_support = [r for r in run if all(r[key] < 2 * start[key] for key in ("off_ratio", "off_norm"))]
            rows.append(
                {
                    "f_near": near["objective"],
                    "excess": near["off_ratio"] - start["off_ratio"],
                    "excess_norm": near["off_norm"] - start["off_norm"],
                    "f_best": best["objective"],
                    "ratio_there": best["off_ratio"] / start["off_ratio"],
                    "norm_there": best["off_norm"] / start["off_norm"],
                    "f_on_support": max((record["objective"] for record in near_support), default=float("nan")),
                    "spread_end": run[-1]["spread"],
                    "seconds_over_plain": _mean([r["seconds"] for r in run[1:]]) / run[0]["seconds"],
                }
            )
        summary[name] = summarize(rows)
    (folder / "summary.json").write_text(json.dumps({"start": start, "methods": summary}, indent=1))
    print("pre-trained:", start)
    show(summary, ("f_near", "excess", "excess_norm", "f_best", "ratio_there", "norm_there", "f_on_support"))
    figure = Figure(figsize=(13, 7), dpi=100, layout="constrained")
    _curves(figure.add_subplot(231), runs, "objective")
    _curves(figure.add_subplot(232), runs, "off_ratio", log=True)
    _curves(figure.add_subplot(233), runs, "off_norm", log=True)
    _curves(figure.add_subplot(234), runs, "spread")
    _pareto(figure.add_subplot(235), runs, "off_ratio", start["off_ratio"])
    _before_and_after(figure.add_subplot(236), folder)
    write_png(folder / "study.png", render(figure))


def digits(*, out: str, seeds: int = 5, rounds: int = 5, num_samples: int = 100, num_steps: int = 14) -> None:
    """Maximize the ink of handwritten digits, under the network of configs/digits/main.yaml.

    Args:
        out: folder for runs, figure and numbers.
        seeds: number of seeds.
        rounds: rounds of every method.
        num_samples: samples in each round.
        num_steps: steps of the sampler.
    """
    strength = _class("guidance.PosteriorStrength", noise=0.05)
    naive = _class("guidance.NaiveGradient", data_std=0.7, strength=strength)
    grid = {"class_path": "lightning_guide.noise.KarrasGrid", "init_args": {"num_steps": num_steps}}
    drawn = {
        "num_samples": num_samples,
        "batch_size": num_samples,
        "sampler": _class("samplers.DPMSolver2M", grid=grid),
    }
    length = {"num_rounds": rounds, "sampling": drawn}
    by_g = {"sampling": drawn | {"guidance": naive}}
    methods: dict[str, Method] = {
        "G": ("test", "digits.yaml", length | by_g),
        "G, 4 delta": ("test", "digits.yaml", length | _gain(0.2) | by_g),
        "G_loss": ("test", "digits.yaml", length),
        "G_loss, 2 delta": ("test", "digits.yaml", length | _gain(0.1)),
        "fine-tuned": ("fit", "digits_fine_tune.yaml", {"sampling": drawn}),
    }
    folder = Path(out)
    folders = {name: folder / name.replace(", ", "_").replace(" ", "_") for name in methods}
    runs = {
        name: [_run(method, seed, folders[name], steps=20 * rounds) for seed in range(seeds)]
        for name, method in methods.items()
    }
    keys = ("objective", "fd", "class_agreement", "spread")
    last = {name: summarize([{key: run[-1][key] for key in keys} for run in each]) for name, each in runs.items()}
    last["unguided"] = summarize([{key: run[0][key] for key in keys} for run in runs["G_loss"]])
    (folder / "summary.json").write_text(json.dumps(last, indent=1))
    show(last, keys)
    figure = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    _curves(figure.add_subplot(131), runs, "objective")
    _pareto(figure.add_subplot(132), runs, "fd", None)
    _pareto(figure.add_subplot(133), runs, "class_agreement", None)
    write_png(folder / "study.png", render(figure))
    states = {name: _state(path / "0") for name, path in folders.items()}
    rows = [states["G_loss"]["prior"], *[state["samples"] for state in states.values()]]
    x = torch.cat([row[:10] for row in rows])
    write_png(folder / "samples.png", image_grid((127.5 * x + 127.5).round().clip(0, 255).to(torch.uint8), 10))
    print("rows of samples.png: unguided,", ", ".join(states))


def _class(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_guide.{path}", "init_args": arguments}


def _gain(delta: float) -> dict[str, Any]:
    return {"target": _class("optimization.GainTarget", delta=delta)}


def _run(method: Method, seed: int, folder: Path, *, steps: int | None = None) -> list[Record]:
    """Return the records of one run, made unless finished; `steps` of training, by default those of the config."""
    command, config, changes = method
    run = folder / str(seed)
    done, path = run / "done", run / "rounds" / "history.jsonl"
    if not done.exists():
        run.mkdir(parents=True, exist_ok=True)
        arguments = copy.deepcopy(changes)
        arguments["sampling"] = arguments.get("sampling", {}) | {"seed": seed}
        if command == "fit":
            arguments["seed"] = seed
        trainer = {"default_root_dir": str(run), "enable_progress_bar": False, "enable_model_summary": False}
        trainer |= {"max_steps": steps} if command == "fit" and steps is not None else {}
        written = run / "changes.yaml"
        written.write_text(yaml.safe_dump({"trainer": trainer, "model": {"init_args": arguments}}))
        lightning_guide([command, "-c", str(CONFIGS / config), "-c", str(written)])
        done.touch()
    return [json.loads(line) for line in path.read_text().splitlines()]


def _state(run: Path) -> dict[str, Any]:
    """Return the last samples and guidance of a run."""
    file = newest_checkpoint(run)
    loaded = torch.load(file or run / "rounds" / "state.ckpt", weights_only=True)
    state: dict[str, Any] = loaded["rounds"] if file else loaded
    return state


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _curves(axes: Any, runs: Mapping[str, list[list[Record]]], key: str, *, log: bool = False) -> None:
    """Draw mean and range over seeds against the round."""
    for color, (name, each) in zip(COLORS, runs.items(), strict=False):
        table = torch.tensor([[record[key] for record in run] for run in each])
        axes.plot(table.mean(0), color=color, label=name)
        axes.fill_between(range(table.shape[1]), table.amin(0), table.amax(0), color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="round", title=key, yscale="log" if log else "linear")
    axes.legend(fontsize=7)


def _pareto(axes: Any, runs: Mapping[str, list[list[Record]]], key: str, level: float | None) -> None:
    """Draw `key` against the objective, one dot for each round of each seed."""
    for color, (name, each) in zip(COLORS, runs.items(), strict=False):
        dots = [(record["objective"], record[key]) for run in each for record in run]
        axes.scatter(*zip(*dots, strict=True), s=5, color=color, label=name, linewidths=0)
    if level is not None:
        axes.axhline(2 * level, color="black", linewidth=0.5)
        axes.set(yscale="log")
    axes.set(xlabel="objective", title=key)


def _before_and_after(axes: Any, folder: Path) -> None:
    """Draw samples of seed 0, first and last round, along theta on the support and their distance from it."""
    a = basis(64, 16)
    theta = Direction().vector
    states = {name: _state(folder / name / "0") for name in ("G", "G_loss", "mean_refit")}
    clouds = {"unguided": states["G"]["prior"]} | {name: state["samples"] for name, state in states.items()}
    for color, (name, x) in zip(("gray", *COLORS), clouds.items(), strict=False):
        inside = x.double() @ a
        off = (x.double() - inside @ a.T).norm(dim=1)
        axes.scatter(inside @ (a.T @ theta) / (a.T @ theta).norm(), off, s=8, color=color, label=name, linewidths=0)
    axes.set(xlabel="along theta on the support", title="distance to the support, first and last round", yscale="log")
    axes.legend(fontsize=7)


if __name__ == "__main__":
    run_script([subspace, digits])
