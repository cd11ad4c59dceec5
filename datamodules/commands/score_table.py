"""The results of `score` and `compare` as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from lightning_guide.report.tables import align_columns, format_number
from lightning_guide.utils.terminal import counted

__all__ = ["score_table"]


def score_table(result: Mapping[str, Any]) -> str:
    """Return the results as text: a row for each metric, a column for each set and each difference to the first."""
    first, *others = result["sets"]
    short = _short_names(list(result["sets"]))
    columns = {short[place]: each["metrics"] for place, each in result["sets"].items()}
    for place, each in zip(others, result["differences"].values(), strict=True):
        columns[f"{short[place]} - {short[first]}{' (paired)' if each['paired'] else ''}"] = each["metrics"]
    names = next(iter(columns.values()))
    table = [["", *columns]]
    table += [[name, *(_shown(column[name]) for column in columns.values())] for name in names]
    against, weights = result["against"], result["extractor"]["weights"]
    count = "unknown number of samples" if against["count"] is None else counted(against["count"], "sample")
    how = f"{result['extractor']['name']}, {f'weights {weights[:16]}' if weights else 'no weights'}"
    lines = [*align_columns(table), f"against {against['place']}, {count}; {how}; {result['resize']}"]
    for place, each in result["sets"].items():
        name = "" if short[place] == place else f"{short[place]}: "
        lines.append(f"{name}{place}, {counted(each['count'], 'sample')}")
    return "\n".join(lines)


def _short_names(places: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of paths that differ.

    Examples:
        >>> _short_names(["runs/a/samples/cfg", "runs/b/samples/cfg", "c.npz"])
        {'runs/a/samples/cfg': 'a/samples/cfg', 'runs/b/samples/cfg': 'b/samples/cfg', 'c.npz': 'c.npz'}
    """
    found = {}
    for place in places:
        parts = PurePath(place).parts
        for length in range(1, len(parts) + 1):
            end = parts[-length:]
            if sum(PurePath(each).parts[-length:] == end for each in places) == 1:
                break
        found[place] = str(PurePath(*end))
    return found if len(set(found.values())) == len(places) else {place: place for place in places}


def _shown(found: Mapping[str, Any]) -> str:
    """Return a value with the digits that its interval leaves, two of half its width, else with four.

    Examples:
        >>> _shown({"value": 12.34567, "low": 12.1, "high": 12.6})
        '12.35 [12.10, 12.60]'
    """
    value, low, high = found["value"], found["low"], found["high"]
    if value is None or low is None or not low < high:
        return format_number(value)
    decimals = max(0, 1 - math.floor(math.log10((high - low) / 2)))
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
