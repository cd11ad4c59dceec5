"""Race of the best points of a search on fresh samples, the same for all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_guide.search.calls import CallBudget
from lightning_guide.search.config import SearchObjective
from lightning_guide.search.scores import ScoreBlock, Scorer, Scores
from lightning_guide.search.space import UNGUIDED, Point

__all__ = ["Race", "RaceResult", "best_scores", "interleave"]


MIN_BLOCKS = 4


"""Fewest blocks that give a meaningful interval."""


FINALISTS = 2


"""Points on the most blocks, for each objective."""


FIELDS = (4, FINALISTS)
"""Candidates for each objective: the first of these numbers that the blocks suffice for."""

PRICES = (6,)
"""More candidates, tried first: under a budget of network calls some of them are cheap."""


@dataclass
class RaceResult:
    """Result of a race.

    Attributes:
        heat: scores of all that took part and of UNGUIDED, over the same blocks.
        fresh: scores of the finalists and of UNGUIDED, over `blocks` blocks.
        winners: metric -> finalist, or UNGUIDED, with the best of these.
        failed: points that could not be drawn from -> why.
        drawn: blocks of each point.
    """

    heat: dict[Point, Scores] = field(default_factory=dict)
    fresh: dict[Point, Scores] = field(default_factory=dict)
    blocks: int = 0
    winners: dict[str, Point] = field(default_factory=dict)
    failed: dict[Point, str] = field(default_factory=dict)
    drawn: dict[Point, int] = field(default_factory=dict)


class Race:
    """Candidates, then the two best of them on twice the blocks."""

    def __init__(
        self,
        scorer: Scorer,
        objectives: Sequence[SearchObjective],
        *,
        blocks: int,
        seed: int,
        calls: CallBudget | None = None,
    ) -> None:
        """At most `blocks` blocks of `seed`; see `enough`. No guidance cannot win if `calls` do not allow it."""
        self.scorer, self.objectives, self.seed, self.calls = scorer, tuple(objectives), seed, calls
        aims = len(self.objectives)
        for candidates in FIELDS if calls is None else PRICES + FIELDS:
            more = int(candidates > FINALISTS)  # the last heat has twice the blocks, if there is one before
            cost = candidates * aims + 1 + more * (FINALISTS * aims + 1)
            self.candidates, self.first = candidates * aims, blocks // cost
            self.last, self.cost = self.first * (1 + more), self.first * cost
            if self.enough:
                break

    @property
    def enough(self) -> bool:
        """Whether each heat has blocks enough for an interval."""
        return self.first >= MIN_BLOCKS

    @staticmethod
    def least(aims: int) -> int:
        """The fewest blocks that are enough for so many objectives."""
        return MIN_BLOCKS * (FINALISTS * aims + 1)

    def run(self, order: Sequence[Point]) -> RaceResult:
        """Race the first points of `order`, the whole space with the most promising points first.

        Raises:
            ValueError: if none of them can be drawn from.
        """
        raced = RaceResult(blocks=self.last)
        raced.heat = self._heat([UNGUIDED, *order[: self.candidates]], self.first, raced)
        ranked = [[point for point in _ranked(each, raced.heat) if point != UNGUIDED] for each in self.objectives]
        finalists = interleave(ranked)[: FINALISTS * len(self.objectives)]
        raced.fresh = self._heat([UNGUIDED, *finalists], self.last, raced)
        guided = {point: scores for point, scores in raced.fresh.items() if point != UNGUIDED}
        allowed = raced.fresh if self.calls is None or UNGUIDED in self.calls.costs else guided
        raced.winners = {each.metric: _ranked(each, allowed)[0] for each in self.objectives}
        return raced

    def _heat(self, points: Sequence[Point], number: int, raced: RaceResult) -> dict[Point, Scores]:
        """Score of those of `points` that can be drawn from, over the first blocks.

        Raises:
            ValueError: with the reason of the last, if it is none of several, or no guidance.
        """
        blocks = [ScoreBlock(self.seed, i) for i in range(number)]
        scores: dict[Point, Scores] = {}
        for point in points:
            try:
                self.scorer.draw(point, blocks)
                raced.drawn[point] = number
                found = self.scorer.scores(point, blocks)
                if self.calls is not None and point != UNGUIDED:
                    self.calls.check(found)
                scores[point] = found
                self.scorer.show_best(best_scores(self.objectives, scores))
            except ValueError as error:
                if point == UNGUIDED:
                    raise
                raced.failed[point] = str(error)
        if len(scores) == 1:
            raise ValueError(f"no candidate could be scored; the last one: {raced.failed[points[-1]]}")
        return scores


def best_scores(objectives: Sequence[SearchObjective], scores: Mapping[Point, Scores]) -> dict[str, tuple[Point, str]]:
    """Return the best point and its score for each metric."""
    best = {each.metric: _ranked(each, scores)[0] for each in objectives}
    return {metric: (point, f"{scores[point].values[metric]:.4g}") for metric, point in best.items()}


def _ranked(objective: SearchObjective, scores: Mapping[Point, Scores]) -> list[Point]:
    """The points, the best one first; equals as they come."""
    losses = {point: objective.loss(each) for point, each in scores.items()}
    return sorted(losses, key=lambda point: losses[point])


def interleave(rankings: Sequence[Sequence[Point]]) -> list[Point]:
    """Interleave rankings: the best of each, then the second of each, ..., every point once."""
    return list(dict.fromkeys(point for turn in zip(*rankings, strict=True) for point in turn))
