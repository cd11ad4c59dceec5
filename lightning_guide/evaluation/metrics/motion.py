"""Where walkers end, and whether they hit what stands in their way: the judgment of the motion experiments.

Shen et al. 2024, https://arxiv.org/abs/2403.12404, table 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.objectives import Goal, Obstacle

__all__ = ["MotionMetrics"]


class MotionMetrics(SampleMetric):
    """`target` and `obstacle`, the mean losses of paths in meters, and `hits`, the share that enter the obstacle."""

    sums: Tensor

    def __init__(self, goal: Goal, obstacle: Obstacle) -> None:
        """The published judgment has an obstacle without a margin."""
        super().__init__()
        self.goal, self.obstacle = goal, obstacle
        self.add_sum("sums", 4)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Nothing: goal and obstacle are all that is needed."""

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds paths `x` (B, 2 joints, frames)."""
        values = [self.goal(x), self.obstacle(x), self.obstacle.hit(x), torch.ones(len(x), device=x.device)]
        self.sums += torch.stack([each.to(torch.float64).sum() for each in values]).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """The three means.

        Raises:
            ValueError: if there are no samples.
        """
        *sums, count = self.sums
        if not count:
            raise ValueError("MotionMetrics has seen no paths")
        return {name: value / count for name, value in zip(("target", "obstacle", "hits"), sums, strict=True)}
