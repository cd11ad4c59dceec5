r"""Negatives made out of the positive prediction: what they need is evaluated once and shared.

Self-attention guidance blurs what the positive predicted, where the positive looked; masked sliding windows replace a
part of what it predicted. Such a negative can be had by itself, as any denoiser; next to its positive, in `Guided`,
the positive is evaluated once for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance.guidance import Guidance

__all__ = ["React", "Reaction"]

React = Callable[[Prediction, Tensor, Tensor, Tensor | None], Prediction]
"""(positive prediction, x (B, *), sigma (), condition) -> negative prediction, all at the same point."""


class Reaction(Guidance, ABC):
    """Base of negatives made out of the prediction of their positive."""

    @abstractmethod
    def attach(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, React]:
        """What runs in the place of `model` so that this can read it along `trajectory`, and the negative.

        `model` is the positive, or what another reaction has put in its place; it predicts the same to the bit.
        """

    def start(self, trajectory: Trajectory) -> Predict:
        """The negative by itself: it evaluates its positive first."""
        model, react = self.attach(self.positive, trajectory)
        positive = model.start(trajectory)
        return lambda x, sigma, condition: react(positive(x, sigma, condition), x, sigma, condition)
