"""Named evaluations of a finished run by `lightning-guide test`, and their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.cli import main as lightning_guide
from lightning_guide.report.metrics_file import metric_values
from lightning_guide.utils.files import read_yaml
from scripts.lib.seed_summary import summarize

Results = dict[str, dict[str, float]]


def evaluate(run_config: str, evaluations: Mapping[str, Mapping[str, Any]], folder: Path) -> Results:
    """Return evaluation -> metric -> value; the results that `folder` holds of equal evaluations are reused."""
    folder.mkdir(parents=True, exist_ok=True)
    written, results = folder / "evaluations.yaml", folder / "metrics.json"
    wanted = yaml.safe_load(yaml.safe_dump({name: dict(each) for name, each in evaluations.items()}))
    kept: dict[str, Any] = {}  # the settings of finished evaluations
    found: dict[str, Any] = {}
    if written.exists() and results.exists():
        found = json.loads(results.read_text())
        before = read_yaml(written)["model"]["init_args"]["evaluations"]
        kept = {name: each for name, each in before.items() if name in found and wanted.get(name, each) == each}
    results.write_text(json.dumps({name: found[name] for name in kept}))
    written.write_text(yaml.safe_dump(_settings(kept | wanted, folder), sort_keys=False))
    if left := {name: each for name, each in wanted.items() if name not in kept}:
        rest = folder / "left.yaml"
        rest.write_text(yaml.safe_dump(_settings(left, folder), sort_keys=False))
        lightning_guide(["test", "-c", run_config, "-c", str(rest)])
    values = metric_values(json.loads(results.read_text()))
    return {name: values[name] for name in wanted}


def _settings(evaluations: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Config that lays `evaluations` over a run and writes their results to `folder`."""
    report = {"class_path": "callbacks.MetricsReport", "init_args": {"folder": str(folder)}}
    return {
        "trainer": {"callbacks": [report], "logger": False, "enable_progress_bar": False},
        "model": {"init_args": {"evaluations": evaluations, "guidances": None}},
    }


def over_seeds(
    run_config: str,
    points: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    folder: Path,
    *,
    against: Sequence[str] = (),
) -> dict[str, Any]:
    """Return mean and 95 % interval of each point over sampling seeds, and write them to `folder`/summary.json.

    `fd_change` is relative to the point `unguided`, `fd_against_NAME` to the point NAME of `against`, paired by seeds.
    """
    each = {f"{name} seed={seed}": {**point, "seed": seed} for name, point in points.items() for seed in seeds}
    results = evaluate(run_config, each, folder)
    references = {"fd_change": "unguided"} | {f"fd_against_{name}": name for name in against}
    for name in points:
        for seed in seeds:
            run = results[f"{name} seed={seed}"]
            run |= {key: run["fd"] / results[f"{other} seed={seed}"]["fd"] - 1 for key, other in references.items()}
    summary = {name: summarize([results[f"{name} seed={seed}"] for seed in seeds]) for name in points}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary
