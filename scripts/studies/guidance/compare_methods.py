"""All guidances of a folder on one run, each at its best weight by the same small search.

    python -m scripts.studies.guidance.compare_methods configs/digits/main.yaml --out runs/digits/methods

Search: every guidance at every weight on one sampling seed; the weight with the lowest FD wins. With `refinements` two
more weights are then tried around it. Confirmation: the best weight on other seeds, paired with unguided samples of the
same seeds. Writes `summary.json` and `table.md`; the same command continues one that was stopped, and draws of a longer
list of methods only the new ones.

`lightning-guide gallery` shows the same guidances at fixed weights, and `lightning-guide tune` finds the weight of one
of them; neither has intervals over sampling seeds. `scripts.studies.evidence` compares them on several models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_guide.commands.gallery import applicable_guidances
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.runs.run import Run
from lightning_guide.utils.files import read_yaml
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, solver
from scripts.lib.evaluations import evaluate, over_seeds
from scripts.lib.guidance_weights import interpolates, refined, with_weight
from scripts.lib.guiders import with_guider
from scripts.lib.seed_summary import Metrics, show

METRICS = ("fd", "fd_change", "precision", "recall", "class_agreement", "nfe", "seconds")
SEARCH_SEED = 1000

Compared = dict[str, tuple[float, dict[str, Metrics]]]
"""Guidance -> its best weight, and its metrics over the seeds; `unguided` has the weight 1."""


def compare(
    run_config: str,
    *,
    out: str,
    methods: list[str] = ["configs/guidance"],  # noqa: B006
    weights: list[float] = [1.25, 1.75, 2.5],  # noqa: B006
    interpolating_weights: list[float] = [0.4, 0.6, 0.8],  # noqa: B006
    refinements: int = 0,
    guider: str | None = None,
    against: list[str] = [],  # noqa: B006
    seeds: int = 5,
    search_samples: int = 100,
    num_samples: int = 200,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 100,
) -> Compared:
    """Search, confirm, write the table and return what it holds.

    Args:
        run_config: config of the finished run.
        out: folder for the results.
        methods: files of guidances, or folders of them.
        weights: weights tried for each guidance.
        interpolating_weights: weights tried for CFG++, whose weight lies between 0 and 1.
        refinements: rounds in which two more weights beside the best one are tried.
        guider: images seen by the earlier snapshots that serve as guiders, or a fraction of the run; default: those of
            the methods.
        against: guidances with which the FD of each is compared, beside unguided samples.
        seeds: number of sampling seeds of the confirmation.
        search_samples: samples for each guidance and weight.
        num_samples: samples for each guidance and seed of the confirmation.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
    """
    folder = Path(out)
    common = {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    run = Run(read_yaml(run_config)["trainer"]["default_root_dir"])
    written = read_guidances(methods)
    guidances = applicable_guidances(written if guider is None else with_guider(written, guider), run)
    tried = {name: interpolating_weights if interpolates(each) else weights for name, each in guidances.items()}
    searched = {**common, "seed": SEARCH_SEED, "num_samples": search_samples}
    best = _search(run_config, guidances, tried, searched, refinements, folder / "search")
    points = {"unguided": common}
    points |= {name: {**common, "guidance": with_weight(guidances[name], weight)} for name, weight in best.items()}
    summary = over_seeds(run_config, points, range(seeds), folder, against=against)
    metrics = [*METRICS, *(f"fd_against_{name}" for name in against)]
    show(summary, metrics)
    compared = {name: (best.get(name, 1.0), values) for name, values in summary.items()}
    (folder / "table.md").write_text(_table(compared, metrics))
    return compared


def _search(
    run_config: str,
    guidances: Mapping[str, dict[str, Any]],
    tried: Mapping[str, Sequence[float]],
    settings: Mapping[str, Any],
    refinements: int,
    folder: Path,
) -> dict[str, float]:
    """Return the weight of each guidance with the lowest FD of those `tried` and of the refined ones."""
    own = {name: list(weights) for name, weights in tried.items()}
    best: dict[str, float] = {}
    for _ in range(1 + refinements):
        for name, weight in best.items():
            own[name] += refined(own[name], weight, interpolating=interpolates(guidances[name]))
        points: dict[str, Mapping[str, Any]] = {"unguided": settings}
        for name, weights in own.items():
            for weight in weights:
                points[f"{name} w={weight:g}"] = {**settings, "guidance": with_weight(guidances[name], weight)}
        found = evaluate(run_config, points, folder)
        for name, weights in own.items():
            distances = [found[f"{name} w={weight:g}"]["fd"] for weight in weights]
            best[name] = min(zip(map(_or_infinity, distances), weights, strict=True))[1]
    return best


def _or_infinity(distance: float | None) -> float:
    """Return a distance; infinity for one that is not finite, of which no number is stored."""
    return math.inf if distance is None else distance


def _table(compared: Compared, metrics: Sequence[str]) -> str:
    """Return a Markdown table, the lowest FD first."""
    lines = ["| guidance | w | " + " | ".join(metrics) + " |", "| :-- |" + " --: |" * (1 + len(metrics))]
    for name, (weight, values) in sorted(compared.items(), key=lambda item: item[1][1]["fd"]["mean"]):
        cells = [percent(values[key]) if key.startswith("fd_") else _number(values[key]) for key in metrics]
        lines.append(f"| {name} | {weight:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(change: Metrics) -> str:
    """Return a relative change and its interval in percent."""
    return f"{100 * change['mean']:+.0f} % +- {100 * change['half_width']:.0f}"


def _number(value: Metrics) -> str:
    exact = not value["half_width"] > 0
    return f"{value['mean']:.3g}" + ("" if exact else f" +- {value['half_width']:.2g}")


if __name__ == "__main__":
    run_script(compare)
