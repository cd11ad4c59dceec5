"""Named evaluations of a finished run by `lightning-guide test`, and their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.cli import main as lightning_guide
from lightning_guide.report.metrics_file import metric_values
from scripts.lib.seed_summary import summarize

Results = dict[str, dict[str, float]]


def evaluate(run_config: str, evaluations: Mapping[str, Mapping[str, Any]], folder: Path) -> Results:
    """Return evaluation -> metric -> value; results that `folder` holds for the same evaluations are reused."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"class_path": "callbacks.MetricsReport", "init_args": {"folder": str(folder)}}
    settings = {
        "trainer": {"callbacks": [report], "logger": False, "enable_progress_bar": False},
        "model": {"init_args": {"evaluations": {n: dict(each) for n, each in evaluations.items()}, "guidances": None}},
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    written, results = folder / "evaluations.yaml", folder / "metrics.json"
    if not (results.exists() and written.exists() and written.read_text() == text):
        results.unlink(missing_ok=True)
        written.write_text(text)
        lightning_guide(["test", "-c", run_config, "-c", str(written)])
    return metric_values(json.loads(results.read_text()))


def over_seeds(
    run_config: str, points: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Return mean and 95 % interval of each point over sampling seeds, and write them to `folder`/summary.json.

    `fd_change` is relative to the point `unguided`, paired by seeds.
    """
    each = {f"{name} seed={seed}": {**point, "seed": seed} for name, point in points.items() for seed in seeds}
    results = evaluate(run_config, each, folder)
    for name in points:
        for seed in seeds:
            run, plain = results[f"{name} seed={seed}"], results[f"unguided seed={seed}"]
            run["fd_change"] = run["fd"] / plain["fd"] - 1
    summary = {name: summarize([results[f"{name} seed={seed}"] for seed in seeds]) for name in points}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary
