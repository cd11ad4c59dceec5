"""Beam search of TFG over doublings of its hyperparameters.

Ye et al. 2024, https://arxiv.org/abs/2409.15761, section 4: the start is small (rho, mu, gamma); in each round every
point of the beam has three children, one with rho doubled, one with mu doubled, one with gamma ten times as large; the
best three of all points so far are the next beam, until no child improves it, or after six to eight rounds of 32 to 64
samples each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Candidate", "FACTORS", "START", "Scores", "Search", "beam_search"]


Candidate = Mapping[str, float]
Scores = Callable[[Sequence[Candidate]], Sequence[float]]
"""Points -> a number for each, higher is better; all new points of a round are scored in one call."""
START: Mapping[str, float] = {"rho": 0.25, "mu": 0.25, "gamma": 0.001}
FACTORS: Mapping[str, float] = {"rho": 2.0, "mu": 2.0, "gamma": 10.0}


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Attributes:
        trials: every scored point and its score, in order.
        rounds: the beam after each round, best first; the first entry is the start.
    """

    trials: list[tuple[Candidate, float]] = field(default_factory=list)
    rounds: list[list[Candidate]] = field(default_factory=list)

    @property
    def best(self) -> Candidate:
        """The point with the highest score."""
        return self.rounds[-1][0]


def beam_search(
    scores: Scores,
    *,
    start: Candidate = START,
    factors: Mapping[str, float] = FACTORS,
    beam: int = 3,
    rounds: int = 7,
) -> Search:
    """Climb from `start` by multiplying one number at a time by its factor; no point is scored twice.

    Args:
        scores: scoring function; NaN counts as the worst.
        start: name -> first value. A number that is 0 stays 0.
        factors: name -> factor; a number without a factor is not changed.
        beam: number of points kept for the next round.
        rounds: largest number of rounds; the search ends when a round leaves the beam unchanged.

    Raises:
        ValueError: if there is nothing to search, or a factor has no start value.
    """
    if not factors or not set(factors) <= set(start) or beam < 1 or rounds < 1:
        raise ValueError(
            f"a beam search needs factors of the numbers {', '.join(start)}, and beam and rounds >= 1, got "
            f"{dict(factors)}, {beam} and {rounds}"
        )
    known: dict[tuple[float, ...], float] = {}
    found = Search()

    def ranked(points: Sequence[Candidate]) -> list[Candidate]:
        several = {_key(point): point for point in points}
        new = [point for key, point in several.items() if key not in known]
        for point, score in zip(new, scores(new) if new else (), strict=True):
            known[_key(point)] = -math.inf if math.isnan(score) else float(score)
            found.trials.append((point, known[_key(point)]))
        return sorted(several.values(), key=lambda point: known[_key(point)], reverse=True)[:beam]

    best = ranked([dict(start)])
    found.rounds.append(best)
    for _ in range(rounds):
        children = [{**point, name: point[name] * by} for point in best for name, by in factors.items()]
        before, best = best, ranked([*best, *children])
        if best == before:
            break
        found.rounds.append(best)
    return found


def _key(point: Candidate) -> tuple[float, ...]:
    return tuple(point.values())
