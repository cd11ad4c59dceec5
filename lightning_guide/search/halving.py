"""Successive halving over growing blocks of paired samples, with a smooth model between the rounds.

Round r looks at fewer points with `factor` times the samples of the round before (Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943), each round costing the same. Samples of a point are kept and added to. A point is
judged by its paired difference from no guidance over the same blocks: what a block does to all points drops out, and so
does the bias of a metric of few samples as far as it is common.

What is left, a deviation of the block in the direction in which a point deviates, is nearly the same for neighbours.
So points are dealt out to different blocks, which come together in later rounds: a Gaussian process over the space
(`smoothing`) then averages over blocks, too. It says who goes on; a point that was not drawn yet may join.

This finds the right region, and cannot tell its points apart. Fresh seeds, the same for all, do: the best `candidates`
race on them in heats of which each doubles the samples and drops half of the field, down to two for each objective.
The last heat alone decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_guide.search.objective import Objective, check_objectives
from lightning_guide.search.scores import Block, Scorer, Scores
from lightning_guide.search.smoothing import smoothed
from lightning_guide.search.space import UNGUIDED, Place, Space

__all__ = ["Found", "Halving", "Round"]

MIN_BLOCKS = 4
"""Fewest fresh blocks: with fewer an interval says nothing."""

FINALISTS = 2
"""Points in the last heat, for each objective."""


@dataclass(frozen=True)
class Round:
    """Blocks of each point, and for each objective its paired difference from no guidance, lower being better."""

    blocks: int
    changes: dict[Place, list[float]]


@dataclass
class Found:
    """What a search has found.

    Attributes:
        rounds: changes in the rounds, each over more samples than the one before.
        heat: scores of all candidates and of UNGUIDED over the fresh samples of the first heat.
        fresh: scores of the finalists and of UNGUIDED over all fresh samples.
        fresh_blocks: number of these blocks.
        winners: metric -> finalist, or UNGUIDED, with the best fresh score.
        failed: points that could not be drawn from -> why.
        samples: how many were drawn.
    """

    rounds: list[Round] = field(default_factory=list)
    heat: dict[Place, Scores] = field(default_factory=dict)
    fresh: dict[Place, Scores] = field(default_factory=dict)
    fresh_blocks: int = 0
    winners: dict[str, Place] = field(default_factory=dict)
    failed: dict[Place, str] = field(default_factory=dict)
    samples: int = 0


class Halving:
    """The search itself; all it knows of samples are scores."""

    def __init__(
        self,
        space: Space,
        scorer: Scorer,
        objectives: Sequence[Objective],
        *,
        budget: int,
        seed: int = 0,
        factor: int = 3,
        candidates: int = 4,
        fresh: float = 0.5,
    ) -> None:
        """At most `budget` samples, a share `fresh` of them for the race of `candidates` of each objective.

        A small budget races fewer of them. The search draws from `seed`, the race from `seed` + 1.

        Raises:
            ValueError: if the budget is too small.
        """
        self.space, self.scorer, self.objectives = space, scorer, tuple(objectives)
        self.seed, self.factor, self.places = seed, factor, space.places
        blocks, aims = budget // scorer.size, len(self.objectives)
        self.heats = max(0, math.ceil(math.log2(candidates / FINALISTS)))
        while self.heats and self._race_cost() * MIN_BLOCKS > fresh * blocks:
            self.heats -= 1
        self.heat_blocks = math.floor(fresh * blocks) // self._race_cost()
        self.search_blocks = blocks - self.heat_blocks * self._race_cost()
        least = 2 * (FINALISTS * aims + 1)
        if self.heat_blocks < MIN_BLOCKS or self.search_blocks < least:
            cost = self._race_cost()
            needed = max(math.ceil(MIN_BLOCKS * cost / fresh), math.ceil(least / (1 - fresh)) + cost)
            raise ValueError(
                f"a budget of {budget} images is too small: {FINALISTS} finalists for each of {aims} objectives and "
                f"blocks of {scorer.size} need at least {scorer.size * needed}"
            )
        self.rounds, self.first = self._schedule()
        self.top = self.first * self.factor ** (self.rounds - 1)
        self._blocks: dict[Place, set[Block]] = {}
        self._changes: dict[Place, list[float]] = {}

    def run(self) -> Found:
        """Searches and confirms.

        Raises:
            ValueError: with the reason of the last, if no point could be drawn from; if a metric is not reported.
        """
        found = Found()
        self._draw(UNGUIDED, {Block(self.seed, number) for number in range(self.top)})
        check_objectives(self.objectives, self.scorer.scores(UNGUIDED, [Block(self.seed, 0)], interval=False))
        order = self._spread()
        for number in range(self.rounds):
            level = self.first * self.factor**number
            left = self.search_blocks - (self.search_blocks - self.top) * (self.rounds - number - 1) // self.rounds
            left -= self._spent
            chosen: list[Place] = []
            for place in order:
                left -= max(level - len(self._blocks.get(place, ())), 0)
                if left < 0:
                    break
                chosen.append(place)
            found.rounds.append(self._round(chosen, level, found))
            order = self._order(found)
        self._race(order, found)
        found.samples = self._spent * self.scorer.size
        return found

    def _field(self, heat: int) -> int:
        """Points in a heat."""
        return FINALISTS * len(self.objectives) * 2 ** (self.heats - heat)

    def _race_cost(self) -> int:
        """Draws of a race, no guidance included, for each block of its first heat."""
        later = sum(self._field(heat) * 2 ** (heat - 1) for heat in range(1, self.heats + 1))
        return self._field(0) + later + 2**self.heats

    def _race(self, places: Sequence[Place], found: Found) -> None:
        """Fresh samples for `places`, the best one first; most for the best."""
        for heat in range(self.heats + 1):
            places = places[: self._field(heat)]
            found.fresh_blocks = self.heat_blocks * 2**heat
            blocks = [Block(self.seed + 1, number) for number in range(found.fresh_blocks)]
            self._draw(UNGUIDED, set(blocks))
            found.fresh = {UNGUIDED: self.scorer.scores(UNGUIDED, blocks)}
            for place in places:
                try:
                    self._draw(place, set(blocks))
                    found.fresh[place] = self.scorer.scores(place, blocks)
                except ValueError as error:
                    found.failed[place] = str(error)
            found.heat = found.heat or found.fresh
            ranked = [_ranked(each, found.fresh) for each in self.objectives]
            places = _in_turns([[place for place in ranking if place != UNGUIDED] for ranking in ranked])
        found.winners = {each.metric: best for each, (best, *_) in zip(self.objectives, ranked, strict=True)}

    def _schedule(self) -> tuple[int, int]:
        """As many rounds as leave the last one room for all who race; the blocks of the first one."""
        last = self._field(0)
        rounds = 1
        while (
            last * self.factor**rounds <= self.search_blocks // (rounds + 1)
            and last * self.factor ** (rounds - 1) < len(self.places)
        ):
            rounds += 1
        begin = min(len(self.places), self.search_blocks // rounds)
        return rounds, max(1, self.search_blocks // rounds // (begin + 1))

    @property
    def _spent(self) -> int:
        """Blocks asked for, whether they were drawn now or lay there from an interrupted search."""
        return sum(map(len, self._blocks.values()))

    def _round(self, places: Sequence[Place], level: int, found: Found) -> Round:
        """Draws and judges; a point that fails is noted and left out from now on.

        Raises:
            ValueError: if no point is left.
        """
        strips = self.top // level
        for number, place in enumerate(places):
            old = min((block.number for block in self._blocks.get(place, ())), default=number % strips * level)
            first = old // level * level
            try:
                self._draw(place, {Block(self.seed, first + i) for i in range(level)})
                self._changes[place] = self._change(place)
            except ValueError as error:
                found.failed[place] = str(error)
                self._changes.pop(place, None)
        ready = [place for place in places if place not in found.failed]
        if not ready:
            last = places[-1]
            raise ValueError(f"none of the points could be scored; {self.space.name(last)}: {found.failed[last]}")
        return Round(level, {place: self._changes[place] for place in ready})

    def _draw(self, place: Place, blocks: set[Block]) -> None:
        self.scorer.draw(place, sorted(blocks))
        self._blocks.setdefault(place, set()).update(blocks)

    def _change(self, place: Place) -> list[float]:
        """The paired difference from no guidance over its blocks for each objective, lower being better."""
        blocks = sorted(self._blocks[place])
        here, plain = (self.scorer.scores(each, blocks, interval=False) for each in (place, UNGUIDED))
        return [objective.loss(here) - objective.loss(plain) for objective in self.objectives]

    def _spread(self) -> list[Place]:
        """All points, each as far as possible from those before it, the first one at the priors."""
        x = self._positions(self.places)
        order = [self.places.index(tuple(axis.begin for axis in self.space.axes))]
        distance = (x - x[order[0]]).square().sum(1)
        while len(order) < len(x):
            order.append(int(distance.argmax()))
            distance = torch.minimum(distance, (x - x[order[-1]]).square().sum(1))
            distance[order] = -1
        return [self.places[i] for i in order]

    def _order(self, found: Found) -> list[Place]:
        """All points that have not failed, the most promising first; objectives take turns."""
        at = [place for place in self.places if place not in found.failed]
        expected = [self._expected(number, at) for number in range(len(self.objectives))]
        return _in_turns([[at[i] for i in each.argsort().tolist()] for each in expected])

    def _expected(self, objective: int, at: Sequence[Place]) -> Tensor:
        """What the smooth model expects of the points `at` (M,): asinh(change / its median size), tamed far off."""
        changes = torch.tensor([change[objective] for change in self._changes.values()], dtype=torch.float64)
        finite = changes[changes.isfinite()]
        if not len(finite):
            return torch.zeros(len(at))
        changes = changes.nan_to_num(nan=math.inf).clamp(max=finite.max())
        size = finite.abs().median()
        samples = torch.tensor([len(self._blocks[place]) for place in self._changes])
        values = (changes / size).asinh() if size > 0 else changes
        return smoothed(self._positions(list(self._changes)), values, samples, self._positions(at))

    def _positions(self, places: Sequence[Place]) -> Tensor:
        return torch.tensor([self.space.position(place) for place in places], dtype=torch.float64)


def _ranked(objective: Objective, scores: Mapping[Place, Scores]) -> list[Place]:
    """The places, the best one first; equals as they come."""
    losses = {place: objective.loss(each) for place, each in scores.items()}
    return sorted(losses, key=lambda place: losses[place])


def _in_turns(rankings: Sequence[Sequence[Place]]) -> list[Place]:
    """The best of each ranking, then the second of each, ..., every place once."""
    return list(dict.fromkeys(place for turn in zip(*rankings, strict=True) for place in turn))
