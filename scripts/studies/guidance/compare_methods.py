"""All guidances of a folder on one run, each at its best weight by the same small search.

    python -m scripts.studies.guidance.compare_methods configs/digits/main.yaml --out runs/digits/methods

Search: every guidance at every weight on one sampling seed; the weight with the lowest FD wins. Confirmation: that
weight on other seeds, paired with unguided samples of the same seeds. Writes `summary.json` and `table.md`.

`lightning-guide gallery` shows the same guidances at fixed weights, and `lightning-guide tune` finds the weight of one
of them; neither has intervals over sampling seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_guide.commands.gallery import applicable_guidances
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.runs.run import Run
from lightning_guide.utils.files import read_yaml
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, solver
from scripts.lib.evaluations import evaluate, over_seeds
from scripts.lib.guidance_weights import with_weight
from scripts.lib.seed_summary import show

METRICS = ("fd", "fd_change", "precision", "recall", "class_agreement", "nfe", "seconds")
SEARCH_SEED = 1000


def compare(
    run_config: str,
    *,
    out: str,
    methods: list[str] = ["configs/guidance"],  # noqa: B006
    weights: list[float] = [1.25, 1.75, 2.5],  # noqa: B006
    interpolating_weights: list[float] = [0.4, 0.6, 0.8],  # noqa: B006
    seeds: int = 5,
    search_samples: int = 100,
    num_samples: int = 200,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 100,
) -> None:
    """Search, confirm, and write the table.

    Args:
        run_config: config of the finished run.
        out: folder for the results.
        methods: files of guidances, or folders of them.
        weights: weights tried for each guidance.
        interpolating_weights: weights tried for CFG++, whose weight lies between 0 and 1.
        seeds: number of sampling seeds of the confirmation.
        search_samples: samples for each guidance and weight.
        num_samples: samples for each guidance and seed of the confirmation.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
    """
    folder = Path(out)
    common = {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    tried: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    run = Run(read_yaml(run_config)["trainer"]["default_root_dir"])
    for name, guidance in applicable_guidances(read_guidances(methods), run).items():
        own = interpolating_weights if guidance["class_path"].endswith("PP") else weights
        tried[name] = [(weight, with_weight(guidance, weight)) for weight in own]
    points: dict[str, dict[str, Any]] = {"unguided": {**common, "seed": SEARCH_SEED, "num_samples": search_samples}}
    for name, variants in tried.items():
        for weight, guidance in variants:
            points[f"{name} w={weight:g}"] = {**points["unguided"], "guidance": guidance}
    found = evaluate(run_config, points, folder / "search")
    best = {"unguided": dict(common)}
    for name, variants in tried.items():
        weight, guidance = min(variants, key=lambda variant: found[f"{name} w={variant[0]:g}"]["fd"])
        best[f"{name} w={weight:g}"] = {**common, "guidance": guidance}
    summary = over_seeds(run_config, best, range(seeds), folder)
    show(summary, METRICS)
    (folder / "table.md").write_text(_table(summary))


def _table(summary: dict[str, Any]) -> str:
    """Return a Markdown table, the lowest FD first."""
    lines = ["| guidance | " + " | ".join(METRICS) + " |", "| :-- |" + " --: |" * len(METRICS)]
    for name, metrics in sorted(summary.items(), key=lambda item: item[1]["fd"]["mean"]):
        cells = [f"{metrics[key]['mean']:.3g} +- {metrics[key]['half_width']:.2g}" for key in METRICS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(compare)
