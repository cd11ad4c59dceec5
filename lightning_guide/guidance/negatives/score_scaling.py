"""Naive truncation: all scores multiplied by a constant, the control experiment of the autoguidance paper.

Karras et al. 2024, https://arxiv.org/abs/2406.02507, figure 1.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["ScoreScaling", "ZeroScore"]


class ZeroScore(Denoiser):
    """D(x) = x, a score of zero everywhere, for data of any shape. Costs no evaluation."""

    data_shape = ()
    num_classes = 0
    sigma_data = 0.0

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """`x` itself."""
        return x

    def start(self, trajectory: Trajectory) -> Predict:
        """No state, nothing counted."""
        return lambda x, sigma, condition: Prediction(x)


class ScoreScaling(Guided):
    """Score times `scale`: D = x + scale (D_pos - x), that is, a negative whose score is zero. One evaluation."""

    def __init__(self, scale: float | WeightSchedule = 1.4, *, positive: Denoiser | None = None) -> None:
        """`scale` of the score, 1 is off."""
        super().__init__([ZeroScore()], [scale], positive=positive)
