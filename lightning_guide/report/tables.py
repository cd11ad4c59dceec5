"""What a run ran on: versions, processors, threads.

Results of evaluations as rows of text, for terminals, markdown and HTML.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = ["environment", "judge_networks", "format_number", "metric_rows"]


_PACKAGES = ("lightning-guide", "torch", "torchvision", "lightning", "torchmetrics", "timm", "open_clip_torch", "numpy")


def environment() -> dict[str, str]:
    """Facts by name; nothing that names a machine, a user or a path."""
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts | {"cpu threads": str(torch.get_num_threads()), "gpus": ", ".join(gpus) or "none"}


Extractors = Mapping[str, Mapping[str, list[str]]]


def metric_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A head and one row for each evaluation; a metric that an evaluation lacks is a dash. Empty without results."""
    metrics = list(dict.fromkeys(key for values in results.values() for key in values if key != "extractors"))
    if not metrics:
        return []
    body = [
        [name, *[format_number(values[metric]) if metric in values else "-" for metric in metrics]]
        for name, values in results.items()
    ]
    return [["evaluation", *metrics], *body]


def format_number(value: float | None) -> str:
    """Four significant digits, counts in full; null, which files hold in place of what is not finite, is "nan"."""
    if value is None:
        return "nan"
    return f"{value:.0f}" if math.isfinite(value) and value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def judge_networks(extractors: Extractors) -> list[str]:
    """One line for each extractor: the metrics that saw the samples through it."""
    users: dict[str, dict[str, None]] = {}
    for metrics in extractors.values():
        for metric, identities in metrics.items():
            for identity in identities:
                users.setdefault(identity, {})[metric] = None
    return [f"{', '.join(metrics)}: {identity}" for identity, metrics in users.items()]
