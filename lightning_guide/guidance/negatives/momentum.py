"""Momentum guidance (MG): the average velocity of the steps before is the negative, at no network call of its own.

Liao et al. 2026, "Momentum Guidance: Plug-and-Play Guidance for Flow Models", https://arxiv.org/abs/2602.20360. The
velocity is extrapolated from an exponential moving average m of past velocities, v + alpha (v - m), w = 1 + alpha.
Only the abstract could be read: that m holds the velocities of the model, not the extrapolated ones, and is updated
after its use, are choices made here. (An update before its use multiplies alpha by the decay.)

With equal steps in t, alpha = 1/2 and no memory (decay 0), Euler's method becomes that of Adams and Bashforth, of
second order: a part of the effect is a smaller error of few steps, and all of it vanishes as steps become short.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance.base import Main
from lightning_guide.guidance.branches import NegativeOfPrediction, PredictionNegative
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["AverageVelocity", "MomentumGuidance"]


class AverageVelocity(PredictionNegative):
    """D whose velocity is the moving average m <- decay m + (1 - decay) v of the steps before. No evaluation.

    v = eps - D with eps = (x - D) / sigma is the velocity of the rectified flow (1 - t) x_0 + t eps, t = sigma /
    (1 + sigma), for models of any kind; D = (x - sigma m) / (1 + sigma). In the first step the negative is the positive
    itself. The corrector of a step uses the average of its predictor.
    """

    def __init__(self, decay: float = 0.5, *, positive: Denoiser | None = None) -> None:
        """`decay` in [0, 1); 0: the velocity of the step before.

        Raises:
            ValueError: if `decay` is outside.
        """
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"AverageVelocity needs a decay of at least 0 and below 1, got {decay}")
        self.decay, self.positive = decay, positive if positive is not None else Main()

    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """Return `model` and the negative, with an average of its own."""
        averages: list[Tensor] = []  # of the steps before the last one that was seen, and with it
        steps: list[int] = []

        def negative(prediction: Prediction, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            velocity = Prediction(prediction.clean).direction(x, sigma) - prediction.clean
            if not averages:
                averages[:] = [velocity, velocity]
            elif trajectory.step != steps[0]:
                averages[0] = averages[1]
                averages[1] = torch.lerp(velocity, averages[0], self.decay)
            steps[:] = [trajectory.step]
            return replace(prediction, clean=(x - sigma * averages[0]) / (1 + sigma), noise=None)

        return model, negative


class MomentumGuidance(Guided):
    """MG, m + w (v - m) with the average m of past velocities (`AverageVelocity`). One evaluation."""

    def __init__(
        self,
        weight: float | WeightSchedule = 1.5,
        *,
        decay: float = 0.5,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`weight` is 1 + alpha; `decay` as in `AverageVelocity`."""
        positive = positive if positive is not None else Main()
        super().__init__(
            [AverageVelocity(decay, positive=positive)], [weight], positive=positive, combination=combination
        )
