"""Tables of results and of the environment, as rows of text for terminals, Markdown and HTML."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lightning_guide.report.commit import code_commit
from lightning_guide.report.metrics_file import ABOUT

__all__ = ["environment", "align_columns", "judge_networks", "format_number", "metric_rows"]


_PACKAGES = ("lightning-guide", "torch", "torchvision", "lightning", "torchmetrics", "timm", "open_clip_torch", "numpy")


def environment() -> dict[str, str]:
    """Return versions, processors and threads by name; no machine, user or path names.

    `commit` is that of this library if it is a checkout, `commit of the project` that of the current folder.
    """
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    own, project = code_commit(Path(__file__).parents[1]), code_commit(Path.cwd())
    facts |= {"commit": own} if own else {}
    facts |= {"commit of the project": project} if project and project.split()[0] != (own or "").split(" ")[0] else {}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts | {"cpu threads": str(torch.get_num_threads()), "gpus": ", ".join(gpus) or "none"}


Extractors = Mapping[str, Mapping[str, list[str]]]


def metric_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a header and one row for each evaluation, with a dash for missing metrics; empty without results."""
    metrics = list(dict.fromkeys(key for values in results.values() for key in values if key not in ABOUT))
    if not metrics:
        return []
    body = [
        [name, *[format_number(values[metric]) if metric in values else "-" for metric in metrics]]
        for name, values in results.items()
    ]
    return [["evaluation", *metrics], *body]


def align_columns(rows: list[list[str]]) -> list[str]:
    """Return lines with aligned columns, the first to the left, numbers to the right, and a rule below the header.

    Examples:
        >>> align_columns([["", "fd"], ["cfg", "12.5"]])
        ['       fd', '---------', 'cfg  12.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]]
        lines.append("  ".join(cells))
    if lines:
        lines.insert(1, "-" * len(lines[0]))
    return lines


def format_number(value: float | None) -> str:
    """Format a value with four significant digits, integers in full; None (not finite in JSON files) is "nan"."""
    if value is None:
        return "nan"
    return f"{value:.0f}" if math.isfinite(value) and value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def judge_networks(extractors: Extractors) -> list[str]:
    """Return one line for each feature extractor: the metrics computed from its features."""
    users: dict[str, dict[str, None]] = {}
    for metrics in extractors.values():
        for metric, identities in metrics.items():
            for identity in identities:
                users.setdefault(identity, {})[metric] = None
    return [f"{', '.join(metrics)}: {identity}" for identity, metrics in users.items()]
