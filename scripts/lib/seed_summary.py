"""Mean and 95 % interval (Student's t) of each metric over runs that differ in their seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

Metrics = dict[str, float]


def summarize(runs: Sequence[Metrics]) -> dict[str, Metrics]:
    """Return metric -> {"mean", "half_width"} over `runs`; the half width is NaN for a single run."""
    return {metric: _interval([run[metric] for run in runs]) for metric in runs[0]}


def _interval(values: Sequence[float]) -> Metrics:
    count = len(values)
    half = math.nan
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {"mean": statistics.fmean(values), "half_width": half}


def show(summary: dict[str, dict[str, Metrics]], metrics: Sequence[str]) -> None:
    """Print a table: a line for each name, a column for each metric."""
    wide = max(len(name) for name in summary) + 2
    print(f"{'':{wide}}" + "".join(f"{metric:>24}" for metric in metrics))
    for name, values in summary.items():
        cells = [f"{values[metric]['mean']:.4f} +- {values[metric]['half_width']:.4f}" for metric in metrics]
        print(f"{name:{wide}}" + "".join(f"{cell:>24}" for cell in cells))
