"""What a tuner hands over: a guidance for each metric, how sure it is, the trade-off, and all that was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.search.config import SearchObjective
from lightning_guide.search.halving import SearchResult
from lightning_guide.search.scores import Scores, difference
from lightning_guide.search.space import UNGUIDED, Place, Space
from lightning_guide.utils.files import atomic

__all__ = ["all_results", "guidance_file", "pareto", "summary_sentence", "write_guidances"]


def summary_sentence(space: Space, found: SearchResult, objective: SearchObjective, *, size: int) -> str:
    """In words: the winner, its metric on fresh samples, and how far no guidance and the next best are from it."""
    metric, raced = objective.metric, found.raced
    fresh, winner = raced.fresh, raced.winners[metric]
    others = sorted(fresh.keys() - {winner, UNGUIDED}, key=lambda place: objective.loss(fresh[place]))
    said = [f"{metric}: {space.name(winner)}, {fresh[winner].estimate(metric)} on {raced.blocks * size} fresh samples"]
    for place in [UNGUIDED, *others[:1]]:
        if place in fresh and place != winner:
            apart = difference(fresh[place], fresh[winner], metric)
            sure = "sure" if abs(apart.value) > apart.half_width else "not told apart"
            said.append(f"{space.name(place)} differs by {apart} ({sure} at 95 %)")
    return "; ".join(said)


def pareto(scores: Mapping[Place, Scores], objectives: Sequence[SearchObjective]) -> list[Place]:
    """The points that no other point beats in one metric without losing in another."""
    losses = {place: [objective.loss(each) for objective in objectives] for place, each in scores.items()}

    def beaten(one: list[float]) -> bool:
        return any(all(b <= a for a, b in zip(one, other, strict=True)) and other != one for other in losses.values())

    return [place for place, loss in losses.items() if not beaten(loss)]


def all_results(
    space: Space, found: SearchResult, objectives: Sequence[SearchObjective], *, size: int
) -> dict[str, Any]:
    """All that was tried, as plain data."""
    raced = found.raced
    return {
        "samples": found.samples,
        "winners": {metric: {"name": space.name(p), "axes": space.values(p)} for metric, p in raced.winners.items()},
        "statements": [summary_sentence(space, found, objective, size=size) for objective in objectives],
        "pareto": [_row(space, place, raced.heat[place]) for place in pareto(raced.heat, objectives)],
        "fresh_samples": raced.blocks * size,
        "fresh": [_row(space, place, scores) for place, scores in raced.fresh.items()],
        "heat": [_row(space, place, scores) for place, scores in raced.heat.items()],
        "rounds": [
            {
                "samples": each.blocks * size,
                "changes": {space.name(place): change for place, change in each.changes.items()},
            }
            for each in found.rounds
        ],
        "failed": {space.name(place): why for place, why in found.failed.items()},
    }


def guidance_file(folder: Path, metric: str) -> Path:
    """Where the guidance found for `metric` is written."""
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
    """`<metric>.yaml` for each objective, to be used with -c; where no guidance won, the best of those that lost.

    The evaluations are those of the search, with no guidance and with the winner, so that sampler and `model` (its
    `metrics`, and `images` and `average` if the search sets them) are those for which it was found; `seed` is one that
    the search has not drawn from.
    """
    for objective in objectives:
        metric = objective.metric
        losses = {place: objective.loss(scores) for place, scores in found.raced.fresh.items() if place != UNGUIDED}
        place = found.raced.winners[metric] or min(losses, key=lambda each: losses[each])
        lines = [f"# {summary_sentence(space, found, objective, size=size)}"]
        if found.raced.winners[metric] == UNGUIDED:
            lines.append(f"# No guidance did better than {space.name(place)}, the best one found.")
        lines.append("# lightning-guide test -c RUN/config.yaml -c this file")
        chosen = {"unguided": UNGUIDED, f"tuned_{metric}": place}
        evaluations = {name: space.evaluation(each) | {"seed": seed} for name, each in chosen.items()}
        content = {"model": {"init_args": {**model, "guidances": None, "evaluations": evaluations}}}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(guidance_file(folder, metric)) as temporary:
            temporary.write_text("\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _row(space: Space, place: Place, scores: Scores) -> dict[str, Any]:
    half_widths = {metric: scores.estimate(metric).half_width for metric in scores.values}
    return {
        "name": space.name(place),
        "axes": space.values(place),
        "values": dict(scores.values),
        "half_widths": half_widths if scores.without else None,
    }
