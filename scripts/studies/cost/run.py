"""Quality for less: FD against network calls of autoguidance, by sampler, steps and calls of the guider.

    python -m scripts.studies.cost.run measure RUN/config.yaml --age 16000 --weight 2 --out OUT     # --only '[Heun]'
    python -m scripts.studies.cost.run accuracy RUN --age 16000 --images 51200 --weight 2 --out OUT
    python -m scripts.studies.cost.run conserved RUN --age 16000 --images 32000 --out OUT

`measure` draws the groups of points below over several sampling seeds; each is compared with Heun's 32 steps on the
same seeds. Groups may be drawn by several processes at once with --only, and are read by the next. `accuracy` measures
how far the samples are from the solution from the same noise, `conserved` what of the difference between model and
guider lasts from one step to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

import lightning_guide as lg
from lightning_guide.commands.guidance_files import build_guidances
from lightning_guide.data import Prompts
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import find_class
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver
from scripts.lib.evaluations import Results, evaluate
from scripts.lib.seed_summary import summarize

REFERENCE = "Heun 32"
POWERS = (0.0, 0.5, 1.0, 1.5, 2.0)


def points_of(guider: Any, weight: float) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> point -> guidance and sampler."""

    def guided(weight: Any = weight, **combination: Any) -> dict[str, Any]:
        rule = {"combination": class_config(**combination)} if combination else {}
        return class_config("Autoguidance", weight=weight, guider=guider, **rule)

    def each(kind: Solver, counts: list[int], guidance: Any, name: str = "") -> dict[str, dict[str, Any]]:
        return {f"{name or kind} {n}": {"guidance": guidance, "sampler": solver(kind, n)} for n in counts}

    def reuse(every: int, power: float = 1.0) -> dict[str, Any]:
        return guided(class_path="ReusedDifference", every=every, power=power)

    within = guided(class_config("Interval", weight=weight, low=0.1, high=10.0))
    adaptive = guided(class_path="UntilAgreement", threshold=0.999)
    return {
        REFERENCE: each("Heun", [32], guided()),
        "2M": each("DPMSolver2M", [6, 12, 21], guided(), "2M"),
        "2M, every 2nd": each("DPMSolver2M", [16, 28], reuse(2), "2M, every 2nd"),
        "Heun": each("Heun", [6, 11], guided()),
        "DEIS": each("DEIS", [6, 8, 12, 16, 21], guided()),
        "PLMS": each("PLMS", [10, 19], guided()),
        "2M, every 3rd": each("DPMSolver2M", [18, 31], reuse(3), "2M, every 3rd"),
        "2M, every 2nd, clean": each("DPMSolver2M", [16, 28], reuse(2, 0.0), "2M, every 2nd, clean"),
        "2M, every 2nd, score": each("DPMSolver2M", [16, 28], reuse(2, 2.0), "2M, every 2nd, score"),
        "2M, within (0.1, 10]": each("DPMSolver2M", [14, 28], within, "2M, within (0.1, 10]"),
        "2M, adaptive": each("DPMSolver2M", [14, 28], adaptive, "2M, adaptive"),
        "2M, unguided": each("DPMSolver2M", [42], None, "2M, unguided"),
    }


def measure(
    run_config: str,
    *,
    out: str,
    age: str,
    weight: float,
    sigma_rel: float = 0.1,
    only: list[str] = [],  # noqa: B006
    seeds: int = 5,
    num_samples: int = 400,
    batch_size: int = 200,
) -> None:
    """Draw all groups, or those named; then write their table and figure, if the reference is among them.

    Args:
        run_config: config of the run.
        out: folder for the results.
        age: age of the guider, in images or as a fraction of the planned run.
        weight: of autoguidance.
        sigma_rel: width of the guider's average.
        only: groups to draw, for several processes at once; default: all.
        seeds: number of sampling seeds, which all points share.
        num_samples: samples for each point and seed.
        batch_size: samples in one network call.
    """
    guider = class_config("Snapshot", images=int(age) if age.isdigit() else age, sigma_rel=sigma_rel)
    common = {"num_samples": num_samples, "batch_size": batch_size}
    groups = points_of(guider, weight)
    if odd := [name for name in only if name not in groups]:
        raise ValueError(f"there is no group {odd[0]!r}; expected some of {', '.join(groups)}")
    found: Results = {}
    for group in only or groups:
        points = groups[group]
        every = {f"{n} seed={s}": {**common, **point, "seed": s} for n, point in points.items() for s in range(seeds)}
        found |= evaluate(run_config, every, Path(out) / group.replace(", ", "_").replace(" ", "_"))
    groups = {group: groups[group] for group in only or groups}
    if REFERENCE not in groups:
        return
    summary = {name: _summary(found, name, seeds) for points in groups.values() for name in points}
    (Path(out) / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    for name, row in summary.items():
        calls, fd, change = row["nfe"]["mean"], row["fd"], row["change"]
        print(
            f"| {name} | {calls:.0f} | {fd['mean']:.3f} ± {fd['half_width']:.3f} "
            f"| {100 * change['mean']:+.1f} % ± {100 * change['half_width']:.1f} |"
        )
    _draw(groups, summary, Path(out) / "cost.png")


def _summary(found: Results, name: str, seeds: int) -> dict[str, Any]:
    """Mean and interval of each metric over the seeds; `change` is the paired one of FD from the reference."""
    runs = [dict(found[f"{name} seed={seed}"]) for seed in range(seeds)]
    for seed, run in enumerate(runs):
        run["change"] = run["fd"] / found[f"{REFERENCE} seed={seed}"]["fd"] - 1
    return summarize(runs)


def _draw(groups: Mapping[str, Any], summary: Mapping[str, Any], path: Path) -> None:
    """Draw the paired change of FD, and the distance from the solution where it was measured, against network calls."""
    measured = path.parent / "accuracy.json"
    rows = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else {}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    families: dict[str, list[str]] = {}
    for name in [*rows, *summary]:
        family = name.rpartition(" ")[0]
        if family and name not in families.setdefault(family, []):
            families[family].append(name)
    for family, names in families.items():
        seen = sorted((rows[name] for name in names if name in rows), key=lambda row: row["calls"])
        calls, values = [row["calls"] for row in seen], [row["distance"] for row in seen]
        (line,) = left.plot(calls, values, marker="o", markersize=4, label=family, linewidth=1)
        scored = [summary[name] for name in names if name in summary]
        calls, means, halves = ([scale * row[key][part] for row in scored] for key, part, scale in _COLUMNS)
        style = {"color": line.get_color(), "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1}
        if scored:
            right.errorbar(calls, means, halves, label=family, **style)
    for axes, name in (
        (left, "root mean square distance from the solution"),
        (right, f"change of FD from {REFERENCE} in %, same seeds"),
    ):
        axes.axvline(42, color="black", linestyle=":", linewidth=1)
        axes.set(xlabel="network calls per sample, with those of the guider", ylabel=name, xscale="log")
        axes.xaxis.set_major_locator(FixedLocator([10, 20, 30, 42, 60, 126]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize=7)
    left.set_yscale("log" if rows else "linear")
    right.axhline(0, color="black", linestyle=":", linewidth=1)
    figure.savefig(path, dpi=100)


_COLUMNS = (("nfe", "mean", 1), ("change", "mean", 100), ("change", "half_width", 100))


@dataclass
class _Pair:
    """A model and its guider."""

    main: lg.Denoiser
    other: lg.Denoiser
    prompts: Prompts | None = None

    @classmethod
    def read(cls, run: str, *, images: int, age: int, sigma_rel: float) -> _Pair:
        widths = ((images, 0.05), (age, sigma_rel))
        return cls(*(lg.Run(run).model(images=n, sigma_rel=width).eval() for n, width in widths))

    def snapshot(self, **_: Any) -> lg.Denoiser:
        """The guider."""
        return self.other


def _steps(point: Mapping[str, Any]) -> int:
    """Steps of the sampler of a point."""
    steps: int = point["sampler"]["init_args"]["grid"]["init_args"]["num_steps"]
    return steps


def accuracy(
    run: str,
    *,
    out: str,
    age: int,
    images: int,
    weight: float,
    sigma_rel: float = 0.1,
    exact_steps: int = 64,
    samples: int = 32,
    only: list[str] = [],  # noqa: B006
) -> None:
    """Print how far the samples of each point are from the solution of the same equation from the same noise.

    The distance is the root mean square over pixels and samples, in units of [-1, 1]; the solution is Heun's with many
    steps. One gray level is 0.0078.

    Args:
        run: folder of the run.
        out: folder for the results.
        age: age of the guider in images.
        images: age of the model in images.
        weight: of autoguidance.
        sigma_rel: width of the guider's average.
        exact_steps: steps of the solution.
        samples: number of samples.
        only: groups to draw; default: all.
    """
    models = _Pair.read(run, images=images, age=age, sigma_rel=sigma_rel)
    labels = torch.arange(samples) % models.main.num_classes if models.main.num_classes else None
    groups = points_of(class_config("Snapshot"), weight)
    exact = {"exact": groups[REFERENCE][REFERENCE] | {"sampler": solver("Heun", exact_steps)}}
    rows: dict[str, dict[str, float]] = {}
    solution = torch.zeros(())
    for name, point in [*exact.items(), *(each for g in only or groups for each in groups[g].items())]:
        guided = build_guidances({name: point["guidance"]})[name].resolve(models) if point["guidance"] else models.main
        sampler = find_class(point["sampler"]["class_path"])(_steps(point))
        end = sampler.sample(guided, seeds=SampleSeeds(0, range(samples)), condition=labels)
        if name == "exact":
            solution = end.x
        apart = (end.x - solution).flatten(1)
        rows[name] = {"calls": end.evaluations, "distance": float(apart.square().mean().sqrt())}
        print(f"| {name} | {end.evaluations} | {rows[name]['distance']:.4f} |", flush=True)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "accuracy.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def conserved(
    run: str, *, out: str, age: int, images: int, steps: int = 12, samples: int = 64, weight: float = 2.0
) -> None:
    """Print how far (sigma'/sigma)^power times the difference of one step is from that of the next, in parts of it.

    Args:
        run: folder of the run.
        out: folder for the results.
        age: age of the guider in images.
        images: age of the model in images.
        steps: of DPM-Solver++(2M) on EDM's grid.
        samples: number of samples.
        weight: of autoguidance, whose trajectories are followed.
    """
    models = _Pair.read(run, images=images, age=age, sigma_rel=0.1)
    sampler, seeds = lg.DPMSolver2M(steps), SampleSeeds(0, range(samples))
    labels = torch.arange(samples) % models.main.num_classes if models.main.num_classes else None
    guided = lg.Autoguidance(models.other, weight, positive=models.main)
    x, before, rows = sampler.initial(guided, seeds), None, []
    states = sampler.steps(guided, x, seeds=seeds, condition=labels)
    for level in sampler.levels(guided)[:-1].tolist():
        with torch.no_grad():
            sigma = torch.tensor(level)
            difference = (models.main(x, sigma, labels) - models.other(x, sigma, labels)).flatten(1)
        if before is not None:
            kept = [before[1] * (level / before[0]) ** power for power in POWERS]
            errors = [float(((each - difference).norm(dim=1) / difference.norm(dim=1)).mean()) for each in kept]
            rows.append({"sigma": level, "size": float(difference.norm(dim=1).mean()), "errors": errors})
            print(f"| {level:.3g} | {rows[-1]['size']:.3f} | " + " | ".join(f"{e:.2f}" for e in errors) + " |")
        before = level, difference
        x = next(states).x
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "conserved.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    run_script([measure, accuracy, conserved])
