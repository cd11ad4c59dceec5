"""Tuning report: a guidance for each metric, its interval, the Pareto front, and everything that was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.search.calls import CALLS, CallBudget
from lightning_guide.search.config import SearchObjective
from lightning_guide.search.halving import SearchResult
from lightning_guide.search.scores import Scores, difference
from lightning_guide.search.space import UNGUIDED, Point, Space
from lightning_guide.utils.files import atomic

__all__ = ["all_results", "guidance_file", "pareto", "price_front", "summary_sentence", "write_guidances"]


def summary_sentence(space: Space, found: SearchResult, objective: SearchObjective, *, size: int) -> str:
    """Summary: the winner, its metric on fresh samples, and its distance to no guidance and to the runner-up."""
    metric, raced = objective.metric, found.raced
    fresh, winner = raced.fresh, raced.winners[metric]
    others = sorted(fresh.keys() - {winner, UNGUIDED}, key=lambda point: objective.loss(fresh[point]))
    summary = [
        f"{metric}: {space.name(winner)}, {fresh[winner].estimate(metric)} on {raced.blocks * size} fresh samples"
    ]
    for point in [UNGUIDED, *others[:1]]:
        if point in fresh and point != winner:
            apart = difference(fresh[point], fresh[winner], metric)
            sure = "significant" if abs(apart.value) > apart.half_width else "not significant"
            summary.append(f"{space.name(point)} differs by {apart} ({sure} at 95 %)")
    return "; ".join(summary)


def pareto(scores: Mapping[Point, Scores], objectives: Sequence[SearchObjective]) -> list[Point]:
    """Pareto front: points that no other point beats in one metric without losing in another."""
    losses = {point: [objective.loss(each) for objective in objectives] for point, each in scores.items()}

    def beaten(one: list[float]) -> bool:
        return any(all(b <= a for a, b in zip(one, other, strict=True)) and other != one for other in losses.values())

    return [point for point, loss in losses.items() if not beaten(loss)]


def price_front(
    scores: Mapping[Point, Scores], objectives: Sequence[SearchObjective], calls: CallBudget
) -> list[Point]:
    """Pareto front of the points within the budget between the objectives and the network calls, the cheapest first."""
    allowed = {point: each for point, each in scores.items() if point in calls.costs}
    return sorted(pareto(allowed, [*objectives, CALLS]), key=lambda point: CALLS.loss(scores[point]))


def all_results(
    space: Space,
    found: SearchResult,
    objectives: Sequence[SearchObjective],
    *,
    size: int,
    calls: CallBudget | None = None,
) -> dict[str, Any]:
    """Everything that was tried, as plain data; under a budget of network `calls` their Pareto front as well."""
    raced = found.raced
    front = pareto(raced.heat, objectives) if calls is None else price_front(raced.heat, objectives, calls)
    costs = {} if calls is None else {"calls": {space.name(point): cost for point, cost in calls.costs.items()}}
    return {
        "samples": found.samples,
        "winners": {metric: {"name": space.name(p), "axes": space.values(p)} for metric, p in raced.winners.items()},
        "statements": [summary_sentence(space, found, objective, size=size) for objective in objectives],
        "pareto": [_row(space, point, raced.heat[point]) for point in front],
        "fresh_samples": raced.blocks * size,
        "fresh": [_row(space, point, scores) for point, scores in raced.fresh.items()],
        "heat": [_row(space, point, scores) for point, scores in raced.heat.items()],
        "rounds": [
            {
                "samples": each.blocks * size,
                "changes": {space.name(point): change for point, change in each.changes.items()},
            }
            for each in found.rounds
        ],
        "failed": {space.name(point): why for point, why in found.failed.items()},
        **costs,
    }


def guidance_file(folder: Path, metric: str) -> Path:
    """File of the guidance found for `metric`."""
    return folder / f"{metric.replace('/', '_')}.yaml"


def write_guidances(
    space: Space,
    found: SearchResult,
    objectives: Sequence[SearchObjective],
    folder: Path,
    *,
    size: int,
    model: Mapping[str, Any],
    seed: int,
) -> None:
    """`<metric>.yaml` for each objective, to be used with -c; where no guidance won, the best guided point.

    The evaluations are those of the search, with no guidance and with the winner, so that sampler and `model` (its
    `metrics`, and `images` and `average` if the search sets them) are those for which it was found; `seed` is one that
    the search has not drawn from.
    """
    for objective in objectives:
        metric = objective.metric
        losses = {point: objective.loss(scores) for point, scores in found.raced.fresh.items() if point != UNGUIDED}
        point = found.raced.winners[metric] or min(losses, key=lambda each: losses[each])
        lines = [f"# {summary_sentence(space, found, objective, size=size)}"]
        if found.raced.winners[metric] == UNGUIDED:
            lines.append(f"# Sampling without guidance beats {space.name(point)}, the best one found.")
        lines.append("# lightning-guide test -c RUN/config.yaml -c this file")
        chosen = {"unguided": UNGUIDED, f"tuned_{metric}": point}
        evaluations = {name: space.evaluation(each) | {"seed": seed} for name, each in chosen.items()}
        content = {"model": {"init_args": {**model, "guidances": None, "evaluations": evaluations}}}
        with atomic(guidance_file(folder, metric)) as temporary:
            temporary.write_text("\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _row(space: Space, point: Point, scores: Scores) -> dict[str, Any]:
    half_widths = {metric: scores.estimate(metric).half_width for metric in scores.values}
    return {
        "name": space.name(point),
        "axes": space.values(point),
        "values": dict(scores.values),
        "half_widths": half_widths if scores.without else None,
    }
