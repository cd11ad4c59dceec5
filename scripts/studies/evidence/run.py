"""All guidances on one model, the best of them on others: what is better than autoguidance and CFG, and for what model?

    lightning-guide fit -c configs/cifar8/classifier.yaml # the features
    lightning-guide fit -c configs/cifar8/main.yaml       # and transformer.yaml, velocity.yaml, flow.yaml
    python -m scripts.studies.evidence.run \
        '[runs/cifar8/main, runs/cifar8/transformer, runs/cifar8/velocity, runs/cifar8/flow]' --out runs/cifar8/evidence

Each run is compared by `scripts.studies.guidance.compare_methods`: every guidance gets the same number of weights and
samples on a seed of its own, then all are paired by seeds with unguided samples, with autoguidance and with CFG. The
guidances of the first run that lower FD most, and some that need no label, are those of the others. Writes the table
of each run, `best.yaml` (the guidances, each at the weight found on the first run), `table.md` (these on all runs) and
`evidence.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

from lightning_guide.commands.guidance_files import read_guidances
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver
from scripts.lib.guidance_weights import with_weight
from scripts.lib.guiders import with_guider
from scripts.lib.seed_summary import Metrics
from scripts.studies.guidance.compare_methods import Compared, compare, percent

BASELINES = ["autoguidance", "cfg"]


def study(
    runs: list[str],
    *,
    out: str,
    methods: list[str] = ["configs/guidance"],  # noqa: B006
    top: int = 10,
    also: list[str] = ["neon", "pag", "skip_layer", "tsg"],  # noqa: B006
    weights: list[float] = [1.25, 1.75, 3.25],  # noqa: B006
    interpolating_weights: list[float] = [0.2, 0.4, 0.8],  # noqa: B006
    refinements: int = 1,
    guider: str = "1/4",
    seeds: int = 5,
    search_samples: int = 200,
    num_samples: int = 400,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 10,
    batch_size: int = 200,
) -> None:
    """Compare all guidances on the first of `runs` and the best of them on the others.

    Args:
        runs: folders of finished runs.
        out: folder for the results.
        methods: files of guidances, or folders of them; autoguidance and CFG have to be among them.
        top: number of guidances, beside autoguidance and CFG, that the other runs are sampled with.
        also: names of further ones; by default those that need no label.
        weights: weights tried for each guidance.
        interpolating_weights: weights tried for CFG++, whose weight lies between 0 and 1.
        refinements: rounds in which two more weights beside the best one are tried.
        guider: age of the snapshots that serve as guiders, a fraction of the training.
        seeds: number of sampling seeds; weights are chosen on another one.
        search_samples: samples for each guidance and weight.
        num_samples: samples for each guidance and seed.
        sampler: class of the sampler.
        num_steps: steps of EDM's grid.
        batch_size: samples in one network call.
    """
    folder, found = Path(out), dict[str, Compared]()
    files, kept = methods, list[str]()
    for run in runs:
        found[Path(run).name] = compare(
            str(Path(run) / "config.yaml"), out=str(folder / Path(run).name), methods=files, weights=weights,
            interpolating_weights=interpolating_weights, refinements=refinements, guider=guider, against=BASELINES,
            seeds=seeds, search_samples=search_samples, num_samples=num_samples, sampler=sampler, num_steps=num_steps,
            batch_size=batch_size,
        )  # fmt: skip
        if files is methods:
            kept = best_of(found[Path(run).name], top, also)
            files = [_write_best(found[Path(run).name], with_guider(read_guidances(methods), guider), kept, folder)]
        _draw(found, folder / "evidence.png")
    (folder / "table.md").write_text(_table(found, kept))


def best_of(compared: Compared, top: int, also: Sequence[str] = ()) -> list[str]:
    """Return the `top` guidances of lowest FD, those that all are compared with and those of `also`, the best first."""
    order = sorted(compared, key=lambda name: compared[name][1]["fd"]["mean"])
    leading = [name for name in order if name not in ("unguided", *BASELINES)][:top]
    return [name for name in order if name in (*leading, *BASELINES, *also)]


def _write_best(compared: Compared, guidances: dict[str, Any], names: Sequence[str], folder: Path) -> str:
    """Write the guidances `names`, each at its weight, as a config that is laid over a run."""
    best = {name: with_weight(guidances[name], compared[name][0]) for name in names}
    path = folder / "best.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"guidances": best}}}, sort_keys=False))
    return str(path)


def _table(found: Mapping[str, Compared], names: Sequence[str]) -> str:
    """Return a Markdown table: a row for each guidance, for each run its weight and the paired change of FD.

    "a" and "c" mark an FD below that of autoguidance and CFG by more than the interval, "A" and "C" one above.
    """
    lines = ["| guidance | " + " | ".join(found) + " |", "| :-- |" + " --: |" * len(found)]
    for name in names:
        cells = [_cell(*compared[name]) if name in compared else "-" for compared in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(weight: float, values: Mapping[str, Metrics]) -> str:
    marks = ""
    for other in BASELINES:
        change = values[f"fd_against_{other}"]
        if abs(change["mean"]) > change["half_width"]:
            marks += other[0] if change["mean"] < 0 else other[0].upper()
    return f"{percent(values['fd_change'])} {marks} ({weight:g})".replace("  ", " ")


def _draw(found: Mapping[str, Compared], path: Path) -> None:
    """Draw the paired change of FD against unguided samples: a row for each guidance, a mark for each run."""
    first = next(iter(found.values()))
    names = sorted((name for name in first if name != "unguided"), key=lambda name: -first[name][1]["fd"]["mean"])
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.24 * len(names)), layout="constrained")
    for number, (run, compared) in enumerate(found.items()):
        rows = [place for place, name in enumerate(names) if name in compared]
        changes = [compared[names[place]][1]["fd_change"] for place in rows]
        axis.errorbar(
            [100 * change["mean"] for change in changes], [place - 0.16 * number for place in rows],
            xerr=[100 * change["half_width"] for change in changes], fmt="osD^v"[number % 5], markersize=4, linewidth=1,
            label=run,
        )  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="change of FD against unguided, paired, %", xlim=(-80, 60), ylim=(-1, len(names)))
    axis.grid(axis="x", alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(study)
