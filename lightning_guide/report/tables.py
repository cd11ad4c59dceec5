"""Results of evaluations as rows of text, for terminals, markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["judges", "number", "rows"]

Extractors = Mapping[str, Mapping[str, list[str]]]


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A head and one row for each evaluation; a metric that an evaluation lacks is a dash. Empty without results."""
    metrics = list(dict.fromkeys(key for values in results.values() for key in values if key != "extractors"))
    if not metrics:
        return []
    body = [
        [name, *[number(values[metric]) if metric in values else "-" for metric in metrics]]
        for name, values in results.items()
    ]
    return [["evaluation", *metrics], *body]


def number(value: float | None) -> str:
    """Four significant digits, counts in full; null, which files hold in place of what is not finite, is "nan"."""
    if value is None:
        return "nan"
    return f"{value:.0f}" if math.isfinite(value) and value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def judges(extractors: Extractors) -> list[str]:
    """One line for each extractor: the metrics that saw the samples through it."""
    users: dict[str, dict[str, None]] = {}
    for metrics in extractors.values():
        for metric, identities in metrics.items():
            for identity in identities:
                users.setdefault(identity, {})[metric] = None
    return [f"{', '.join(metrics)}: {identity}" for identity, metrics in users.items()]
