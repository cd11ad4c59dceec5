"""Results in one JSON file, `metrics.json`: those of a fit and of later evaluations, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_guide.utils.terminal import counted

__all__ = ["ABOUT", "labeled_results", "merge_results", "metric_values", "read_facts", "read_text"]


ABOUT = ("extractors", "of", "earlier")
"""Keys of the results of an evaluation that are no metrics: feature networks, evaluated model, other models."""

Results = Mapping[str, Mapping[str, Any]]


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        ValueError: naming it, if it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}") from None


def merge_results(known: Results, found: Results) -> dict[str, dict[str, Any]]:
    """Return the results `known` with those `found`: evaluation -> metric -> value of the newest results.

    `of` of each names its `command`, the evaluated model (`images`, `average`, and `run` if it is of another folder)
    and a hash of the `settings` of the samples. Results of an evaluation under other models or settings are in its list
    `earlier`, oldest first. `found` replace those of the same evaluation, and in a fit those of earlier validations.
    """
    kept = [(name, values) for name, values in _rows(known) if not _is_replaced(name, values, found)]
    rows = [*kept, *((name, dict(values)) for name, values in found.items())]
    merged: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for name, _ in rows):
        *earlier, newest = [dict(values) for each, values in rows if each == name]
        merged[name] = newest | ({"earlier": earlier} if earlier else {})
    return merged


def _rows(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield evaluation and values for each model, oldest results first."""
    for name, values in results.items():
        yield from ((name, dict(each)) for each in values.get("earlier", ()))
        yield name, {key: value for key, value in values.items() if key != "earlier"}


def _is_replaced(name: str, values: Mapping[str, Any], found: Results) -> bool:
    """Return whether the results of an evaluation give way; those without `of` are of older versions."""
    own = values.get("of", {})
    if own.get("command") == "fit" and any(each["of"]["command"] == "fit" for each in found.values()):
        return True
    return name in found and (not own or _without_command(own) == _without_command(found[name]["of"]))


def _without_command(of: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in of.items() if key != "command"}


def metric_values(results: Results) -> dict[str, dict[str, Any]]:
    """Return evaluation -> metric -> value of the newest results in the content of a `metrics.json`."""
    return {name: {k: v for k, v in values.items() if k not in ABOUT} for name, values in results.items()}


def labeled_results(results: Results, order: Sequence[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return label -> (evaluation, values) of all results, in the `order` of evaluations, then by images seen.

    The label is the evaluation, followed by what differs between the models of the results; those that differ by other
    settings alone by the command, and a number from the second one on.
    """
    rows = sorted(_rows(results), key=lambda row: (list(order).index(row[0]), row[1].get("of", {}).get("images") or 0))
    models = [values.get("of", {}) for _, values in rows]
    differing = [key for key in ("images", "average", "run") if len({model.get(key) for model in models}) > 1]
    labels = [
        ", ".join([name, *(_words(key, model[key]) for key in differing if key in model)])
        for (name, _), model in zip(rows, models, strict=True)
    ]
    several = {label for label in labels if labels.count(label) > 1}
    labels = [f"{a}, {model.get('command')}" if a in several else a for a, model in zip(labels, models, strict=True)]
    numbers = [labels[:i].count(label) for i, label in enumerate(labels)]
    labels = [f"{label} {number + 1}" if number else label for label, number in zip(labels, numbers, strict=True)]
    return dict(zip(labels, rows, strict=True))


def _words(key: str, value: Any) -> str:
    """Name the images, the average or the run of a model."""
    return counted(value, "image") if key == "images" else f"{key} {'raw weights' if value is None else value}"


def read_facts(path: Path) -> dict[str, dict[str, Any]]:
    """Return the dict of dicts in a JSON file; empty if the file does not exist.

    Raises:
        ValueError: if the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(each, dict) for each in content.values()):
        raise ValueError(f"{path} is damaged: expected a dict of dicts")
    return content
