"""Improvement of a model on its own samples: SIMS, Neon, and autoguidance by an early snapshot, against the base.

    python -m scripts.studies.sims.run configs/sims/digits.yaml --out runs/digits/sims_study

Each seed has its own synthetic set and auxiliary, made by `lightning-guide fit`; then FD is measured over weights and
budgets on the sampling seed of the same number, paired with the base. The best budget of each method is chosen by the
mean over the seeds, its weight by Brent's bounded search on few samples of another seed; both are confirmed on fresh
sampling seeds with every auxiliary. Writes `summary.json`, `curves.png` and `table.md`; finished phases are not
repeated.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from scipy.optimize import minimize_scalar

from lightning_guide.cli import main as lightning_guide
from lightning_guide.runs.models import open_snapshots
from lightning_guide.utils.files import read_yaml
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver, write_settings
from scripts.lib.evaluations import Results, evaluate
from scripts.lib.seed_summary import show, summarize

METRICS = ("fd", "fd_change", "precision", "recall", "class_agreement", "nfe")
FRESH = 10_000  # sampling seeds of the confirmation
SEARCH = 20_000  # and of the search

Point = tuple[str, int, float]  # method, budget, weight
Summary = dict[str, dict[str, dict[str, float]]]


def study(
    run_config: str,
    *,
    out: str,
    seeds: int = 5,
    budgets: list[int] = [1920, 3840, 7680],  # noqa: B006
    weights: list[float] = [1.25, 1.5, 2.0, 3.0],  # noqa: B006
    early: str | None = "1/3.5",
    synthetic: int = 1000,
    num_samples: int = 300,
    search_samples: int = 200,
    confirm_samples: int = 500,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 100,
) -> None:
    """Train, search, confirm and draw.

    Args:
        run_config: config of the auxiliary, such as configs/sims/digits.yaml.
        out: folder for runs and results.
        seeds: number of auxiliaries, each with its own synthetic set.
        budgets: ages of the auxiliary in images; the largest is the length of its training.
        weights: w = 1 + omega.
        early: age of the base's own snapshot that guides autoguidance; None leaves autoguidance out.
        synthetic: n_s, samples in each synthetic set.
        num_samples: samples for each point of the grid and seed.
        search_samples: samples for each weight of the search.
        confirm_samples: samples for each method and seed of the confirmation.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
    """
    folder = Path(out)
    common = {"batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    settings = read_yaml(run_config)
    base = settings["model"]["init_args"]["denoiser"]["init_args"]["run"]
    costs = [_train(run_config, settings, folder, seed, synthetic, common, budgets) for seed in range(seeds)]
    guides = _Guides(base, early)
    points = [(kind, budget, weight) for kind in ("SIMS", "Neon") for budget in budgets for weight in weights]
    points += [("Autoguidance", 0, weight) for weight in weights] if early else []
    grid = {_name(point): guides.of(point) for point in points} | {"base": guides.base}
    results = [
        evaluate(str(_config(folder, seed)), _drawn(grid, common, num_samples, seed), folder / f"grid-{seed}")
        for seed in range(seeds)
    ]
    summary = _paired(results)
    _draw(summary, points, folder / "curves.png", f"{num_samples} samples, {seeds} seeds")
    best = {}
    for kind in dict.fromkeys(point[0] for point in points):
        found = min((p for p in points if p[0] == kind), key=lambda p: summary[_name(p)]["fd_change"]["mean"])
        searched = str(_config(folder, 0)), common, search_samples, folder / "search"
        best[kind] = _refined(found, guides, weights, *searched)
    chosen = {_name(point): guides.of(point) for point in best.values()} | {"base": guides.base}
    confirmed = _paired(
        [
            evaluate(
                str(_config(folder, seed)),
                _drawn(chosen, common, confirm_samples, FRESH + seed),
                folder / f"confirmed-{seed}",
            )
            for seed in range(seeds)
        ]
    )
    show(confirmed, METRICS)
    cost = {key: sum(each[key] for each in costs) / seeds for key in costs[0]}
    (folder / "summary.json").write_text(
        json.dumps({"grid": summary, "confirmed": confirmed, "cost_of_an_auxiliary": cost}, indent=1)
    )
    (folder / "table.md").write_text(_table(confirmed) + f"\n{cost}\n")


class _Guides:
    """Guidances for the evaluation of an auxiliary, whose base is another run."""

    def __init__(self, base: str, early: str | None) -> None:
        self.base = _snapshot(run=base, images="1/1", sigma_rel=0.05)
        self.early = _snapshot(run=base, images=early, sigma_rel=0.1)

    def of(self, point: Point) -> dict[str, Any]:
        kind, budget, weight = point
        auxiliary = _snapshot(images=budget, sigma_rel=0.05)
        if kind == "Autoguidance":
            return class_config(kind, guider=self.early, positive=self.base, weight=weight)
        return class_config(kind, auxiliary=auxiliary, base=self.base, weight=weight)


def _snapshot(**arguments: Any) -> dict[str, Any]:
    return class_config("Snapshot", **arguments)


def _name(point: Point) -> str:
    kind, budget, weight = point
    return f"{kind} {budget} w={weight:g}" if budget else f"{kind} w={weight:g}"


def _config(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}" / "config.yaml"


def _train(
    config: str,
    settings: dict[str, Any],
    folder: Path,
    seed: int,
    synthetic: int,
    common: dict[str, Any],
    budgets: list[int],
) -> dict[str, float]:
    """Train one auxiliary unless it exists; return its cost."""
    run, note = folder / f"seed-{seed}", folder / f"seed-{seed}" / "cost.json"
    budget = max(budgets)
    steps = budget // settings["data"]["init_args"]["batch_size"]
    averages = {"sigma_rels": [0.05], "every_images": budget}
    overlay = {
        "trainer": {
            "default_root_dir": str(run),
            "max_steps": steps,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "callbacks": [
                class_config("callbacks.PostHocEMA", **averages),
                class_config("callbacks.BudgetSnapshots", budgets=budgets),
            ],
        },
        "model": {"init_args": {"seed": seed}},
        "data": {
            "init_args": {
                "folder": str(run / "synthetic"),
                "num_samples": synthetic,
                "sampling_seed": seed,
                "seed": seed,
                "sampler": common["sampler"],
            }
        },
    }
    write_settings(run / "overlay.yaml", overlay, done=note)
    if not note.exists():
        begin = time.process_time()
        lightning_guide(["fit", "-c", config, "-c", str(run / "overlay.yaml")])
        if open_snapshots(run).entries()[-1].images < budget:
            raise SystemExit(f"{run} was stopped; run the same command to continue")
        cost = {"cpu_seconds": time.process_time() - begin, "images": max(budgets), "synthetic": synthetic}
        note.write_text(json.dumps(cost))
    loaded: dict[str, float] = json.loads(note.read_text())
    return loaded


def _drawn(guidances: dict[str, Any], common: dict[str, Any], count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Build evaluations of `guidances` on one sampling seed."""
    return {name: {**common, "num_samples": count, "seed": seed, "guidance": each} for name, each in guidances.items()}


def _paired(results: list[Results]) -> Summary:
    """Return mean and 95 % interval of every metric over seeds; `fd_change` is against the base of the same seed."""
    for run in results:
        for values in run.values():
            values["fd_change"] = values["fd"] / run["base"]["fd"] - 1
    return {name: summarize([run[name] for run in results]) for name in results[0]}


def _refined(
    point: Point, guides: _Guides, weights: list[float], config: str, common: dict[str, Any], count: int, folder: Path
) -> Point:
    """Return `point` with a weight found by bounded Brent search between its neighbors in the grid."""
    kind, budget, weight = point
    grid = [1.0, *sorted(weights)]
    at = grid.index(weight)
    low, high = grid[at - 1], grid[at + 1] if at + 1 < len(grid) else 2 * weight - grid[at - 1]

    def fd(tried: float) -> float:
        tried = round(float(tried), 3)
        named = {"tried": guides.of((kind, budget, tried))}
        found = evaluate(config, _drawn(named, common, count, SEARCH), folder / _name((kind, budget, tried)))
        return found["tried"]["fd"]

    found = minimize_scalar(fd, bounds=(low, high), method="bounded", options={"xatol": 0.05, "maxiter": 6})
    return kind, budget, round(float(found.x), 3)


def _draw(summary: Summary, points: list[Point], path: Path, title: str) -> None:
    """Draw the change of FD against weight for each budget, and against the budget for each weight; bands are 95 %."""
    kinds = list(dict.fromkeys(point[0] for point in points))
    figure, axes = plt.subplots(2, len(kinds), figsize=(4.2 * len(kinds), 7), layout="constrained", sharey="row")
    for column, kind in enumerate(kinds):
        budgets = sorted({budget for name, budget, _ in points if name == kind})
        weights = sorted({weight for name, _, weight in points if name == kind})
        for budget in budgets:
            label = f"B = {budget} images" if budget else "early snapshot"
            curve = [None, *((kind, budget, w) for w in weights)]
            _band(axes[0, column], [1.0, *weights], curve, summary, label)
        for weight in weights if len(budgets) > 1 else []:
            along: list[Point | None] = [(kind, budget, weight) for budget in budgets]
            _band(axes[1, column], [float(b) for b in budgets], along, summary, f"w = {weight:g}")
        axes[0, column].set(title=kind, xlabel="weight w = 1 + omega")
        axes[1, column].set(xlabel="budget B in images")
        for axis in axes[:, column]:
            if not axis.lines:
                axis.set_axis_off()
                continue
            axis.axhline(0, color="black", linewidth=1)
            axis.legend(fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("change of FD against the base")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _band(axes: Any, x: list[float], points: list[Point | None], summary: Summary, label: str) -> None:
    """Draw a curve with its interval; None is the base itself."""
    none = {"mean": 0.0, "half_width": 0.0}
    values = [none if point is None else summary[_name(point)]["fd_change"] for point in points]
    means = [value["mean"] for value in values]
    (line,) = axes.plot(x, means, marker="o", markersize=4, label=label)
    lows, highs = ([v["mean"] + sign * v["half_width"] for v in values] for sign in (-1, 1))
    axes.fill_between(x, lows, highs, color=line.get_color(), alpha=0.15)


def _table(summary: Summary) -> str:
    """Return a Markdown table, the lowest FD first."""
    lines = ["| | " + " | ".join(METRICS) + " |", "| :-- |" + " --: |" * len(METRICS)]
    for name, metrics in sorted(summary.items(), key=lambda item: item[1]["fd"]["mean"]):
        cells = [f"{metrics[key]['mean']:.3g} ± {metrics[key]['half_width']:.2g}" for key in METRICS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(study)
