"""The best points of a search on fresh samples, the same for all: what the search cannot tell apart, these do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_guide.search.config import SearchObjective
from lightning_guide.search.scores import ScoreBlock, Scorer, Scores
from lightning_guide.search.space import UNGUIDED, Place

__all__ = ["Race", "RaceResult", "interleave"]


MIN_BLOCKS = 4


"""Fewest blocks: with fewer an interval says nothing."""


FINALISTS = 2


"""Points on the most blocks, for each objective."""


FIELDS = (4, FINALISTS)


"""Candidates for each objective; the first number that the blocks are enough for."""


@dataclass
class RaceResult:
    """What a race has found.

    Attributes:
        heat: scores of all that took part and of UNGUIDED, over the same blocks.
        fresh: scores of the finalists and of UNGUIDED, over `blocks` blocks.
        winners: metric -> finalist, or UNGUIDED, with the best of these.
        failed: points that could not be drawn from -> why.
        drawn: blocks of each point.
    """

    heat: dict[Place, Scores] = field(default_factory=dict)
    fresh: dict[Place, Scores] = field(default_factory=dict)
    blocks: int = 0
    winners: dict[str, Place] = field(default_factory=dict)
    failed: dict[Place, str] = field(default_factory=dict)
    drawn: dict[Place, int] = field(default_factory=dict)


class Race:
    """Candidates, then the two best of them on twice the blocks."""

    def __init__(self, scorer: Scorer, objectives: Sequence[SearchObjective], *, blocks: int, seed: int) -> None:
        """At most `blocks` draws of `seed`; `enough` says whether they suffice."""
        self.scorer, self.objectives, self.seed = scorer, tuple(objectives), seed
        aims = len(self.objectives)
        for candidates in FIELDS:
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

    def run(self, order: Sequence[Place]) -> RaceResult:
        """Races the first points of `order`, which goes through the whole space, the most promising first.

        Raises:
            ValueError: if none of them can be drawn from.
        """
        raced = RaceResult(blocks=self.last)
        raced.heat = self._heat([UNGUIDED, *order[: self.candidates]], self.first, raced)
        ranked = [[place for place in _ranked(each, raced.heat) if place != UNGUIDED] for each in self.objectives]
        finalists = interleave(ranked)[: FINALISTS * len(self.objectives)]
        raced.fresh = self._heat([UNGUIDED, *finalists], self.last, raced)
        raced.winners = {each.metric: _ranked(each, raced.fresh)[0] for each in self.objectives}
        return raced

    def _heat(self, places: Sequence[Place], number: int, raced: RaceResult) -> dict[Place, Scores]:
        """Scores of those of `places` that can be drawn from, over the first blocks.

        Raises:
            ValueError: with the reason of the last, if it is none of several, or no guidance.
        """
        blocks = [ScoreBlock(self.seed, i) for i in range(number)]
        scores: dict[Place, Scores] = {}
        for place in places:
            try:
                self.scorer.draw(place, blocks)
                raced.drawn[place] = number
                scores[place] = self.scorer.scores(place, blocks)
            except ValueError as error:
                if place == UNGUIDED:
                    raise
                raced.failed[place] = str(error)
        if len(scores) == 1:
            raise ValueError(f"none of the best points could be scored; the last one: {raced.failed[places[-1]]}")
        return scores


def _ranked(objective: SearchObjective, scores: Mapping[Place, Scores]) -> list[Place]:
    """The places, the best one first; equals as they come."""
    losses = {place: objective.loss(each) for place, each in scores.items()}
    return sorted(losses, key=lambda place: losses[place])


def interleave(rankings: Sequence[Sequence[Place]]) -> list[Place]:
    """The best of each ranking, then the second of each, ..., every place once."""
    return list(dict.fromkeys(place for turn in zip(*rankings, strict=True) for place in turn))
