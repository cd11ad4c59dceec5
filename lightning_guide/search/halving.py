"""Successive halving over growing blocks of paired samples, with a smooth model between the rounds.

Round r scores fewer points with `factor` times the samples of the round before (Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943), each round costing the same. Samples of a point are kept and added to. A point is
judged by its paired difference from no guidance over the same blocks: effects of a block common to all points cancel,
and so does the bias of a metric of few samples as far as it is common.

What remains, a deviation of the block in the direction in which a point deviates, is nearly the same for neighbors.
So points are assigned to disjoint blocks, which come together in later rounds: a Gaussian process over the space
(`smoothing`) then averages over blocks, too. It selects the points of the next round; points not drawn yet may join.

This finds the right region but cannot rank the points within it; `race` does, on fresh samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_guide.search.calls import CallBudget
from lightning_guide.search.config import SearchObjective, check_objectives
from lightning_guide.search.gaussian_process import smooth
from lightning_guide.search.race import Race, RaceResult, interleave
from lightning_guide.search.scores import ScoreBlock, Scorer
from lightning_guide.search.space import UNGUIDED, Point, Space
from lightning_guide.utils.terminal import counted

__all__ = ["SearchResult", "Halving", "Round", "check_budget"]


@dataclass(frozen=True)
class Round:
    """Blocks of each point, and for each objective its paired difference from no guidance, lower being better."""

    blocks: int
    changes: dict[Point, list[float]]


@dataclass
class SearchResult:
    """Result of a search.

    Attributes:
        rounds: changes in the rounds, each over more samples than the one before.
        raced: scores of the best over fresh samples, and the winners.
        failed: points that could not be drawn from -> why.
        samples: how many were drawn.
    """

    rounds: list[Round] = field(default_factory=list)
    raced: RaceResult = field(default_factory=RaceResult)
    failed: dict[Point, str] = field(default_factory=dict)
    samples: int = 0


def check_budget(budget: int, *, size: int, aims: int, fresh: float = 0.5) -> None:
    """Check that so many images suffice for `aims` objectives and blocks of `size`.

    Raises:
        ValueError: if they do not: with the least.
    """
    least = size * math.ceil(Race.least(aims) / min(fresh, 1 - fresh))
    if budget < least:
        raise ValueError(
            f"a budget of {budget} images is too small: {counted(aims, 'objective')} and blocks of {size} need at "
            f"least {least}"
        )


class Halving:
    """Successive halving over the scores of a `Scorer`."""

    def __init__(
        self,
        space: Space,
        scorer: Scorer,
        objectives: Sequence[SearchObjective],
        *,
        budget: int,
        seed: int = 0,
        factor: int = 3,
        fresh: float = 0.5,
        calls: CallBudget | None = None,
    ) -> None:
        """At most `budget` samples, a fraction `fresh` of them for the race, which draws from `seed` + 1.

        Under a budget of network `calls` only its points are tried, cheap ones among them up to the race.

        Raises:
            ValueError: if the budget is too small.
        """
        self.space, self.scorer, self.objectives = space, scorer, tuple(objectives)
        self.seed, self.factor, self.calls = seed, factor, calls
        self.points = [point for point in space.points if calls is None or point in calls.costs]
        blocks, aims = budget // scorer.size, len(self.objectives)
        check_budget(budget, size=scorer.size, aims=aims, fresh=fresh)
        self.race = Race(scorer, objectives, blocks=math.floor(fresh * blocks), seed=seed + 1, calls=calls)
        self.search_blocks = blocks - self.race.cost
        assert self.race.enough and self.search_blocks >= Race.least(aims), "so says the budget"
        self.rounds, self.first = self._schedule()
        self.top = self.first * self.factor ** (self.rounds - 1)
        self._blocks: dict[Point, set[ScoreBlock]] = {}
        self._changes: dict[Point, list[float]] = {}

    def run(self) -> SearchResult:
        """Search, then confirm the best points on fresh samples.

        Raises:
            ValueError: with the reason of the last, if no point could be drawn from; if a metric is not reported.
        """
        found = SearchResult()
        self._draw(UNGUIDED, {ScoreBlock(self.seed, number) for number in range(self.top)})
        check_objectives(self.objectives, self.scorer.scores(UNGUIDED, [ScoreBlock(self.seed, 0)], interval=False))
        order = self._spread()
        for number in range(self.rounds):
            level = self.first * self.factor**number
            left = self.search_blocks - (self.search_blocks - self.top) * (self.rounds - number - 1) // self.rounds
            left -= self._spent
            chosen: list[Point] = []
            for point in order:
                left -= max(level - len(self._blocks.get(point, ())), 0)
                if left < 0:
                    break
                chosen.append(point)
            found.rounds.append(self._round(chosen, level, found))
            order = self._order(found)
        found.raced = self.race.run(order)
        found.failed |= found.raced.failed
        found.samples = (self._spent + sum(found.raced.drawn.values())) * self.scorer.size
        return found

    @property
    def samples(self) -> int:
        """Samples that the search draws at most."""
        return (self.search_blocks + self.race.cost) * self.scorer.size

    def _schedule(self) -> tuple[int, int]:
        """Number of rounds such that the last has room for all candidates of the race, and the blocks of the first."""
        last = self.race.candidates
        rounds = 1
        while last * self.factor**rounds <= self.search_blocks // (rounds + 1) and last * self.factor ** (
            rounds - 1
        ) < len(self.points):
            rounds += 1
        begin = min(len(self.points), self.search_blocks // rounds)
        return rounds, max(1, self.search_blocks // rounds // (begin + 1))

    @property
    def _spent(self) -> int:
        """Blocks requested, drawn now or by an interrupted search."""
        return sum(map(len, self._blocks.values()))

    def _round(self, points: Sequence[Point], level: int, found: SearchResult) -> Round:
        """Draw and score; a point that fails is recorded and excluded.

        Raises:
            ValueError: if no point is left.
        """
        strips = self.top // level
        for number, point in enumerate(points):
            old = min((block.number for block in self._blocks.get(point, ())), default=number % strips * level)
            first = old // level * level
            try:
                self._draw(point, {ScoreBlock(self.seed, first + i) for i in range(level)})
                self._changes[point] = self._change(point)
                self._show_best()
            except ValueError as error:
                found.failed[point] = str(error)
                self._changes.pop(point, None)
        ready = [point for point in points if point not in found.failed]
        if not ready:
            last = points[-1]
            raise ValueError(f"no point could be scored; {self.space.name(last)}: {found.failed[last]}")
        return Round(level, {point: self._changes[point] for point in ready})

    def _draw(self, point: Point, blocks: set[ScoreBlock]) -> None:
        self.scorer.draw(point, sorted(blocks))
        self._blocks.setdefault(point, set()).update(blocks)

    def _change(self, point: Point) -> list[float]:
        """The paired difference from no guidance over its blocks for each objective, lower being better."""
        blocks = sorted(self._blocks[point])
        here, plain = (self.scorer.scores(each, blocks, interval=False) for each in (point, UNGUIDED))
        if self.calls is not None:
            self.calls.check(here)
        return [objective.loss(here) - objective.loss(plain) for objective in self.objectives]

    def _show_best(self) -> None:
        """Show the points with the best change against no guidance so far."""
        best = {}
        for i, objective in enumerate(self.objectives):
            point = min(self._changes, key=lambda each: self._changes[each][i])  # noqa: B023
            change = self._changes[point][i] * (1 if objective.lowest else -1)
            best[objective.metric] = point, f"{change:+.4g} against none"
        self.scorer.show_best(best)

    def _spread(self) -> list[Point]:
        """All points, farthest first, beginning at the priors, or at the nearest point to them."""
        x = self._positions(self.points)
        priors = self._positions([tuple(axis.begin for axis in self.space.axes)])
        order = [int((x - priors).square().sum(1).argmin())]
        distance = (x - x[order[0]]).square().sum(1)
        distance[order[0]] = -1
        while len(order) < len(x):
            order.append(int(distance.argmax()))
            distance = torch.minimum(distance, (x - x[order[-1]]).square().sum(1))
            distance[order[-1]] = -1
        return [self.points[i] for i in order]

    def _order(self, found: SearchResult) -> list[Point]:
        """All points that have not failed, the most promising first; objectives, and their prices, take turns."""
        at = [point for point in self.points if point not in found.failed]
        expected = [self._expected(number, at) for number in range(len(self.objectives))]
        ranked = [[at[i] for i in each.argsort(stable=True).tolist()] for each in expected]
        if self.calls is not None:
            ranked = [each for ranking in ranked for each in self.calls.by_price(ranking)]
        return interleave(ranked)

    def _expected(self, objective: int, at: Sequence[Point]) -> Tensor:
        """Prediction of the smooth model at the points `at` (M,): asinh(change / median size).

        Infinite where a point was drawn and its metric is no number: neighbors do not compensate for that.
        """
        changes = torch.tensor([change[objective] for change in self._changes.values()], dtype=torch.float64)
        finite = changes[changes.isfinite()]
        drawn = self._changes
        lost = torch.tensor([p in drawn and not drawn[p][objective] < math.inf for p in at])
        if not len(finite):
            return torch.zeros(len(at)).masked_fill(lost, math.inf)
        changes = changes.nan_to_num(nan=math.inf).clamp(finite.min(), finite.max())
        size = finite.abs().median()
        samples = torch.tensor([len(self._blocks[point]) for point in self._changes])
        values = (changes / size).asinh() if size > 0 else changes
        expected = smooth(self._positions(list(self._changes)), values, samples, self._positions(at))
        return expected.masked_fill(lost, math.inf)

    def _positions(self, points: Sequence[Point]) -> Tensor:
        return torch.tensor([self.space.position(point) for point in points], dtype=torch.float64)
