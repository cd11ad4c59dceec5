"""The model under another condition than the sample's: the negatives of classifier-free guidance and its kin.

Such a negative has weights and input in common with its positive, so that both can run as one batch (`Branches`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Trajectory
from lightning_guide.guidance.guidance import Guidance
from lightning_guide.guidance.references import Main

__all__ = ["OtherCondition", "Replace"]

Replace = Callable[[Tensor, Tensor | None], Tensor | None]
"""(x (B, *), condition of the samples) -> the condition that takes its place."""


class OtherCondition(Guidance, ABC):
    """D(x, sigma, c') with another condition c'. One evaluation."""

    def __init__(self, positive: Denoiser | None = None) -> None:
        """`positive` is the model with labels; default: the one under evaluation."""
        super().__init__()
        self.positive = positive if positive is not None else Main()

    @abstractmethod
    def begin(self, trajectory: Trajectory) -> Replace:
        """How conditions are replaced along one trajectory."""

    def start(self, trajectory: Trajectory) -> Predict:
        """The denoiser's own trajectory, under the other condition."""
        predict, other = self.positive.start(trajectory), self.begin(trajectory)
        return lambda x, sigma, condition: predict(x, sigma, other(x, condition))
