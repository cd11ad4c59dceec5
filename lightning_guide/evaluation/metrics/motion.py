"""Goal and collision losses and collision rate of trajectories, the metrics of the motion experiments.

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
    """Motion metrics: mean losses `target` and `obstacle` of paths in meters, and collision rate `hits`."""

    reads_data = False
    sums: Tensor

    def __init__(self, goal: Goal, obstacle: Obstacle) -> None:
        """Take goal and obstacle; the published obstacle has no margin."""
        super().__init__()
        self.goal, self.obstacle = goal, obstacle
        self.add_sum("sums", 4)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Do nothing: the metrics need no reference."""

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add motions `x` in meters, as `ground_path` takes them."""
        values = [self.goal(x), self.obstacle(x), self.obstacle.hit(x), torch.ones(len(x), device=x.device)]
        self.sums += torch.stack([each.to(torch.float64).sum() for each in values]).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """Return the three means.

        Raises:
            ValueError: if there are no samples.
        """
        *sums, count = self.sums
        if not count:
            raise ValueError("MotionMetrics has no samples")
        return {name: value / count for name, value in zip(("target", "obstacle", "hits"), sums, strict=True)}
