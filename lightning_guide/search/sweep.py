"""A sweep: every point of a space, over the same blocks of samples, one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_guide.search.drawing import DrawnBlocks
from lightning_guide.search.ledger import Ledger
from lightning_guide.search.objective import Objective, check_objectives
from lightning_guide.search.scores import Block, Scores
from lightning_guide.search.space import UNGUIDED, Place, Space
from lightning_guide.search.tables import COST

__all__ = ["Swept", "run_sweep", "swept"]

Swept = dict[Place, Scores]


def run_sweep(
    space: Space, scorer: DrawnBlocks, ledger: Ledger, objectives: Sequence[Objective], *, blocks: int, seed: int
) -> None:
    """Scores no guidance and all points of `space` into `ledger`, which is written after each; what it holds is kept.

    A point that fails is noted with the reason; another run of the sweep tries it again.

    Raises:
        ValueError: with the reason of the last, if every point fails; if an objective is not reported.
    """
    chosen = [Block(seed, number) for number in range(blocks)]
    points: dict[str, Any] = ledger.content.setdefault("points", {})
    places = [UNGUIDED, *space.places]
    for number, place in enumerate(places, 1):
        name = space.name(place)
        if "values" in points.get(name, {}):
            continue
        points[name] = {"axes": space.values(place)}
        try:
            scorer.draw(place, chosen)
            scores = scorer.scores(place, chosen)
        except ValueError as error:
            points[name]["failed"] = str(error)
            rank_zero_info(f"[{number}/{len(places)}] {name}: failed: {error}")
        else:
            points[name] |= {"values": dict(scores.values), "without": [dict(each) for each in scores.without]}
            said = "  ".join(f"{key} {value:.4g}" for key, value in scores.values.items() if key not in COST)
            rank_zero_info(f"[{number}/{len(places)}] {name}: {said}")
        if scorer.trainer.is_global_zero:
            ledger.write()
        scorer.forget(place)
        if "values" in points[name]:
            check_objectives(objectives, Scores(points[name]["values"]))
    failed = [each["failed"] for name, each in points.items() if "failed" in each and name != space.name(UNGUIDED)]
    if len(failed) == len(places) - 1:
        raise ValueError(f"every point of the sweep failed, the last one: {failed[-1]}")


def swept(space: Space, ledger: Ledger) -> Swept:
    """The scores in a ledger by place, without those that failed."""
    points = ledger.content.get("points", {})
    return {
        place: Scores(_numbers(found["values"]), [_numbers(each) for each in found["without"]])
        for place in [UNGUIDED, *space.places]
        if "values" in (found := points.get(space.name(place), {}))
    }


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}
