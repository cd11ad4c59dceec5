"""Score scaling (naive truncation): all scores times a constant, the control experiment of the autoguidance paper.

Karras et al. 2024, https://arxiv.org/abs/2406.02507, figure 1.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["ScoreScaling", "ZeroScore"]


class ZeroScore(Denoiser):
    """D(x) = x, a score of zero everywhere, for data of any shape. No evaluation."""

    data_shape = ()
    num_classes = 0
    sigma_data = 0.0

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `x` itself."""
        return x

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the identity, which counts no evaluation."""
        return lambda x, sigma, condition: Prediction(x)


class ScoreScaling(Guided):
    """Score times `scale`: D = x + scale (D_pos - x), guidance by a negative whose score is zero. One evaluation.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> model, x, sigma = gaussian(torch.zeros(1), torch.eye(1)), torch.tensor([[4.0]]), torch.tensor(1.0)
        >>> model(x, sigma).item(), ScoreScaling(1.5, positive=model)(x, sigma).item()
        (2.0, 1.0)
    """

    def __init__(self, scale: float | WeightSchedule = 1.4, *, positive: Denoiser | None = None) -> None:
        """`scale` of the score, 1 is off."""
        super().__init__([ZeroScore()], [scale], positive=positive)
