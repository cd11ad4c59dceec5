"""Guidance in some of the steps only, counted in steps, for methods that are published so.

Where the noise level is meant, take `Interval`: it does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combination import Combination, Combine, Plain

__all__ = ["StepWindow"]


class StepWindow(Combination):
    """`combination` in the steps i of N with low <= i / N < high, i = 0 ... N - 1; outside every weight is 1.

    So the negatives are not called outside. A step is inside or outside with all its stages.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, combination: Combination | None = None) -> None:
        """`low` and `high` are fractions of the trajectory; `combination` defaults to `Plain`.

        Raises:
            ValueError: unless 0 <= low < high <= 1.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(f"a window of steps needs 0 <= low < high <= 1, got low={low}, high={high}")
        self.low, self.high = low, high
        self.combination = combination or Plain()

    def weights(self, weights: Sequence[float], trajectory: Trajectory) -> list[float]:
        """1 outside."""
        if self.low <= trajectory.step / trajectory.steps < self.high:
            return self.combination.weights(weights, trajectory)
        return [1.0] * len(weights)

    def start(self, trajectory: Trajectory) -> Combine:
        """The rule inside, started afresh."""
        return self.combination.start(trajectory)
