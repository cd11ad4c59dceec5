"""Results of a run for its page: intervals beside their values, the baseline, and the best of each metric."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lightning_guide.report.metrics_file import ABOUT
from lightning_guide.report.tables import format_number

__all__ = ["Cell", "find_baseline", "in_order", "interval_keys", "is_lower_better", "result_cells"]


_LOWER = (
    "fd kid cmmd memorized off_ratio off_norm outliers total_variation lost_mass sliced_wasserstein non_finite target "
    "obstacle hits rmse residual"
).split()
_HIGHER = "precision recall density coverage inception_score clip_score class_agreement mean_log_density psnr".split()
_BOUNDS = (("_low", "_high"), ("_min", "_max"))


class Cell(NamedTuple):
    """Cell of a table: text, how it is marked, and the relative address it links to."""

    text: str
    mark: Literal["", "best", "baseline"] = ""
    link: str = ""


def find_baseline(results: Iterable[str], evaluations: Any) -> str | None:
    """Return the first evaluation without guidance: by the `evaluations` of the config, else by its name."""
    written = evaluations if isinstance(evaluations, Mapping) else {}
    for name in results:
        settings = written.get(name)
        guidance = settings.get("guidance") if isinstance(settings, Mapping) else None
        path = guidance.get("class_path", "") if isinstance(guidance, Mapping) else str(guidance or "Main")
        if (isinstance(settings, Mapping) and path.rpartition(".")[2] == "Main") or name == "unguided":
            return name
    return None


def in_order(names: Sequence[str], order: Sequence[str]) -> list[str]:
    """Return `names` in the `order` of others; those that are not among them come last."""
    return sorted(names, key=lambda name: list(order).index(name) if name in order else len(order))


def is_lower_better(metric: str) -> bool | None:
    """Return whether smaller values of a metric are better; None if that is unknown."""
    for better, keys in ((True, _LOWER), (False, _HIGHER)):
        if any(f"_{key}_" in f"_{metric}_" for key in keys):
            return better
    return None


def interval_keys(keys: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return metric -> keys of the ends of its interval, or of the smallest and largest value of its repetitions."""
    pairs = ((key, (key + low, key + high)) for key in keys for low, high in _BOUNDS)
    return {key: pair for key, pair in pairs if {*pair} <= {*keys}}


def result_cells(results: Mapping[str, Mapping[str, Any]], baseline: str | None) -> list[list[Cell]]:
    """Return a header and one row for each evaluation: `baseline` and the best values marked, intervals in brackets."""
    keys = list(dict.fromkeys(key for values in results.values() for key in values if key not in ABOUT))
    bounds = interval_keys(keys)
    keys = [key for key in keys if not any(key in pair for pair in bounds.values())]
    rows = [[Cell("evaluation"), *map(Cell, keys)]] if keys else []
    for name, values in results.items():
        row = [Cell(name, "baseline" if name == baseline else "")]
        for key in keys:
            text = format_number(values[key]) if key in values else "-"
            if key in bounds and all(values.get(bound) is not None for bound in bounds[key]):
                text += f" [{', '.join(format_number(values[bound]) for bound in bounds[key])}]"
            row.append(Cell(text, "best" if name in _best(results, key) else ""))
        rows.append(row)
    return rows if keys else []


def _best(results: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """Return the evaluations with the best value of a metric, if it differs between some."""
    lower = is_lower_better(metric)
    values = {name: each[metric] for name, each in results.items() if each.get(metric) is not None}
    if lower is None or len({*values.values()}) < 2:
        return []
    best = min(values.values()) if lower else max(values.values())
    return [name for name, value in values.items() if value == best]
