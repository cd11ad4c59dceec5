"""What a search looks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_guide.search.scores import Scores

__all__ = ["Objective", "check_objectives"]


@dataclass(frozen=True)
class Objective:
    """A metric that is to be low, or high."""

    metric: str
    lowest: bool = True

    def loss(self, scores: Scores) -> float:
        """The metric, lower being better; infinite where it is no number."""
        value = scores.values[self.metric]
        return math.inf if math.isnan(value) else value if self.lowest else -value


def check_objectives(objectives: Sequence[Objective], scores: Scores) -> None:
    """Refuses a metric that was not reported.

    Raises:
        ValueError: naming those that are.
    """
    for objective in objectives:
        if objective.metric not in scores.values:
            there = ", ".join(scores.values)
            raise ValueError(f"the metric {objective.metric!r} is not reported; there are: {there}")
