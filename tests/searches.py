"""A tiny finished run, and searches on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_guide.cli import main
from tests.test_cli import TINY

PIXELS = {"extractor": {"class_path": "RawPixels"}}
METRICS = {
    "fd": {"class_path": "FrechetDistance", "init_args": PIXELS},
    "pr": {"class_path": "PrecisionRecall", "init_args": PIXELS | {"max_reference": 50}},
}
SEARCH = {
    "images": "1/1",
    "average": 0.05,
    "evaluation": {
        "batch_size": 7,
        "sampler": {
            "class_path": "lightning_guide.samplers.Euler",
            "init_args": {"grid": {"class_path": "lightning_guide.noise.KarrasGrid", "init_args": {"num_steps": 4}}},
        },
        "guidance": {
            "class_path": "Autoguidance",
            "init_args": {"guider": {"class_path": "Snapshot", "init_args": {"images": "1/2", "sigma_rel": 0.1}}},
        },
    },
    "axes": {
        "weight": {"path": "guidance.init_args.weight", "values": [3, float("nan")], "prior": 3},
        "sigma_rel": {"path": "guidance.init_args.guider.init_args.sigma_rel", "values": [0.08, 0.28]},
    },
    "metrics": METRICS,
    "block": 6,
    "blocks": 5,
    "objectives": {"fd": "lowest", "recall": "highest"},
}


def finished_run(folder: Path) -> None:
    """Train `folder`/run with averages of two widths at 20 times, and write SEARCH to `folder`/search.yaml."""
    dense = {"class_path": "PostHocEMA", "init_args": {"every_images": 8}}
    settings = TINY | {"trainer": TINY["trainer"] | {"max_steps": 20, "callbacks": [dense]}}  # type: ignore[operator]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    main(["fit", "-c", str(folder / "tiny.yaml"), "--trainer.default_root_dir", str(folder / "run")])
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH, sort_keys=False))


def search(folder: Path, kind: str, out: str, *words: str, changes: dict[str, Any] | None = None) -> Path:
    """Run a search with some of SEARCH changed; return its folder."""
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(SEARCH | (changes or {}), sort_keys=False))
    main([kind, str(folder / "run/config.yaml"), str(path), "--out", str(folder / out), *words])
    return folder / out


def own_metrics(folder: Path, metrics: dict[str, Any]) -> str:
    """Write a config for --configs in which the first evaluation has its own metrics; return the option's value."""
    path = folder / "own_metrics.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"evaluations": {"unguided": {"metrics": metrics}}}}}))
    return f"[{path}]"


def other_data(folder: Path) -> Path:
    """Write a config with different data of the same kind; return its path."""
    path = folder / "other_data.yaml"
    path.write_text("data: {init_args: {seed: 7}}")
    return path
