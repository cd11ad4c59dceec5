"""When to guide: a window of noise levels, and every k-th step of it."""

from __future__ import annotations

import math

from lightning_guide.denoiser import Trajectory
from lightning_guide.recipe import Recorded

__all__ = ["Window"]


class Window(Recorded):
    """Steps that begin at low < sigma <= high, and of those with the numbers 0, every, 2 every, ... only.

    With the linear schedule of most papers the time 100 of 1000 is sigma = .34, 200 .72, 300 1.24, 400 2.04, 500 3.44,
    700 12, 800 25.5.
    """

    def __init__(self, low: float = 0.0, high: float = math.inf, *, every: int = 1) -> None:
        """`low` and `high` are noise levels; `every` counts the steps of the trajectory.

        Raises:
            ValueError: if the window is empty or `every` is less than 1.
        """
        if not 0 <= low < high or every < 1:
            raise ValueError(f"a window needs 0 <= low < high in sigma and every >= 1, got {low}, {high} and {every}")
        self.low, self.high, self.every = low, high, every

    def opens(self, trajectory: Trajectory) -> bool:
        """Whether the current step is guided."""
        return self.low < trajectory.sigma <= self.high and trajectory.step % self.every == 0
