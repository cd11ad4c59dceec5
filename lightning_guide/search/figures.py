"""Figures of searches: a metric against the weight, over two lengths of averages, and against network calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_guide.search.calls import CALLS, CallBudget
from lightning_guide.search.config import SearchObjective
from lightning_guide.search.halving import SearchResult
from lightning_guide.search.scores import Scores
from lightning_guide.search.space import UNGUIDED, Axis, Point, Space
from lightning_guide.search.tune_report import price_front

__all__ = ["draw_front", "draw_heat_maps", "draw_sensitivity"]


def draw_sensitivity(
    space: Space, swept: Mapping[Point, Scores], objectives: Sequence[SearchObjective], path: Path
) -> bool:
    """A column for each metric, a row for each axis beside the weight: metric against weight, a curve for each value.

    Axes that a panel does not show are set to the best point. Bands are 95 % (`estimate.jackknife`), dashed is no
    guidance. A metric whose values differ tenfold stands on a logarithmic scale. False if the space has no axis of
    numbers.
    """
    guided = {point: scores for point, scores in swept.items() if point != UNGUIDED}
    along = [i for i, axis in enumerate(space.axes) if axis.ordered and len(axis.values) > 1]
    if not (along and guided):
        return False
    x = next((i for i in along if space.axes[i].path.rpartition(".")[2] == "weight"), along[-1])
    rows = [i for i, axis in enumerate(space.axes) if i != x and len(axis.values) > 1] or [x]
    figure = Figure(figsize=(5.2 * len(objectives), 3.6 * len(rows)), dpi=100, layout="constrained")
    panels = figure.subplots(len(rows), len(objectives), squeeze=False)
    for column, objective in enumerate(objectives):
        best = min(guided, key=lambda point: objective.loss(guided[point]))
        scale = _scale([scores.values[objective.metric] for scores in swept.values()])
        for row, varied in enumerate(rows):
            panel: Axes = panels[row][column]
            for number, value in enumerate(space.axes[varied].shown if varied != x else [None]):
                curve = [p for p in guided if all(p[i] == best[i] for i in range(len(best)) if i not in (x, varied))]
                curve = sorted(point for point in curve if varied == x or point[varied] == number)
                label = None if varied == x else f"{space.axes[varied].name} {value}"
                _curve(panel, space.axes[x], [(point[x], guided[point]) for point in curve], objective.metric, label)
            if UNGUIDED in swept:
                plain = swept[UNGUIDED].estimate(objective.metric)
                panel.axhline(plain.value, color="black", linestyle="--", linewidth=1, label="no guidance")
                if math.isfinite(plain.half_width):
                    panel.axhspan(
                        plain.value - plain.half_width, plain.value + plain.half_width, color="black", alpha=0.08
                    )
            fixed = [f"{axis.name} {axis.shown[best[i]]}" for i, axis in enumerate(space.axes) if i not in (x, varied)]
            panel.set(xlabel=space.axes[x].name, ylabel=objective.metric, yscale=scale)
            panel.set_title(", ".join(fixed), fontsize=8)
            panel.legend(fontsize=7)
    figure.savefig(path)
    return True


def draw_heat_maps(
    space: Space, swept: Mapping[Point, Scores], objectives: Sequence[SearchObjective], path: Path
) -> bool:
    """Each metric over the two axes that are lengths of averages (`sigma_rel`), the others as is best for each cell.

    False if there are not two such axes.
    """
    lengths = [i for i, axis in enumerate(space.axes) if axis.path.endswith("sigma_rel") and len(axis.values) > 1]
    guided = {point: scores for point, scores in swept.items() if point != UNGUIDED}
    if len(lengths) < 2 or not guided:
        return False
    down, across = lengths[0], lengths[1]
    figure = Figure(figsize=(4.6 * len(objectives), 4), dpi=100, layout="constrained")
    for panel, objective in zip(figure.subplots(1, len(objectives), squeeze=False)[0], objectives, strict=True):
        cells = [
            [_best(guided, objective, {down: i, across: j}) for j in range(len(space.axes[across].values))]
            for i in range(len(space.axes[down].values))
        ]
        image = panel.imshow(cells, cmap="viridis_r" if objective.lowest else "viridis", aspect="auto")
        for i, line in enumerate(cells):
            for j, value in enumerate(line):
                green = image.cmap(image.norm(value))[1]  # most of a color's brightness
                color = "black" if green > 0.5 else "white"
                panel.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color=color)
        for axis, set_ticks, set_label in (
            (space.axes[across], panel.set_xticks, panel.set_xlabel),
            (space.axes[down], panel.set_yticks, panel.set_ylabel),
        ):
            set_ticks(range(len(axis.values)), [str(value) for value in axis.shown])
            set_label(axis.name)
        others = ", best of the other settings" if len(space.axes) > 2 else ""
        panel.set_title(objective.metric + others, fontsize=9)
        figure.colorbar(image, ax=panel)
    figure.savefig(path)
    return True


def draw_front(
    space: Space, found: SearchResult, objectives: Sequence[SearchObjective], calls: CallBudget, path: Path
) -> None:
    """Each metric against network calls per sample: everything tried, the candidates on fresh samples, their front.

    Points of the search are drawn at their paired difference from no guidance; they were judged on few samples of
    different blocks. Candidates have intervals of 95 %; the line joins those that none beats for fewer calls.
    """
    raced = found.raced.heat
    figure = Figure(figsize=(5.2 * len(objectives), 3.8), dpi=100, layout="constrained")
    for number, panel in enumerate(figure.subplots(1, len(objectives), squeeze=False)[0]):
        objective = objectives[number]
        plain, sign = raced[UNGUIDED], 1 if objective.lowest else -1
        latest = {point: changes[number] for tried in found.rounds for point, changes in tried.changes.items()}
        known = {point: cost for point in latest if (cost := calls.costs[point]) is not None}
        seen = [plain.values[objective.metric] + sign * latest[point] for point in known]
        panel.scatter(list(known.values()), seen, s=8, color="0.7", label="search")
        for label, points in (("candidates", [p for p in raced if p != UNGUIDED]), ("no guidance", [UNGUIDED])):
            each = [raced[point].estimate(objective.metric) for point in points]
            costs, values = [CALLS.loss(raced[point]) for point in points], [estimate.value for estimate in each]
            panel.errorbar(costs, values, [e.half_width for e in each], fmt="o", capsize=3, label=label)
        front = price_front(raced, [objective], calls)
        line = [(CALLS.loss(raced[point]), raced[point].values[objective.metric]) for point in front]
        panel.plot(*zip(*line, strict=True), color="black", linewidth=1, label="front")
        panel.axvline(calls.limit, color="black", linestyle=":", linewidth=1)
        panel.set(xlabel="network calls per sample", ylabel=objective.metric, xscale="log")
        panel.legend(fontsize=7)
    figure.savefig(path)


def _best(guided: Mapping[Point, Scores], objective: SearchObjective, fixed: Mapping[int, int]) -> float:
    """The best value of a metric where some axes are fixed; NaN where nothing was scored."""
    cell = [scores for point, scores in guided.items() if all(point[axis] == value for axis, value in fixed.items())]
    return min(cell, key=objective.loss).values[objective.metric] if cell else math.nan


def _scale(values: Sequence[float]) -> Literal["linear", "log"]:
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and 0 < 10 * min(finite) < max(finite) else "linear"


def _curve(panel: Axes, axis: Axis, points: Sequence[tuple[int, Scores]], metric: str, label: str | None) -> None:
    """A curve with its band; numbers at their value on the axis, fractions evenly spaced in order."""
    plain = all(isinstance(value, int | float) for value in axis.values)
    x = [axis.values[i] if plain else i for i, _ in points]
    estimates = [scores.estimate(metric) for _, scores in points]
    values = [each.value for each in estimates]
    (line,) = panel.plot(x, values, marker="o", markersize=3, label=label)
    halves = [0.0 if math.isnan(each.half_width) else each.half_width for each in estimates]
    low, high = ([v + s * h for v, h in zip(values, halves, strict=True)] for s in (-1, 1))
    panel.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if not plain:
        panel.set_xticks(range(len(axis.values)), [str(value) for value in axis.values])
