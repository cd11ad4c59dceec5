"""Naive gradient guidance (G), Guo et al. 2024, https://arxiv.org/abs/2404.14743, proposition 3 with Sigma = I.

The gradient itself is added to the score, which moves samples off the support of the data.
G_t = alpha (y - v) g / (s^2 + h |g|^2) in the paper's form becomes

    G = (y - v) g / (1 + sigma^2) / (s^2 + sigma^2 / (1 + sigma^2) |g|^2) = c J with J = g / (1 + sigma^2),

the look-ahead guidance with the denoiser of N(0, I) in place of the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict
from lightning_guide.guidance.gradient.base import GradientGuidance, Linearization, check_gradient_shape
from lightning_guide.guidance.gradient.strengths import Strength

__all__ = ["NaiveGradient"]


class NaiveGradient(GradientGuidance):
    """Naive gradient guidance, J = g d^2 / (d^2 + sigma^2), d the standard deviation of the data (1 in the paper).

    No backward pass.
    """

    def __init__(
        self,
        strength: Strength | None = None,
        *,
        data_std: float = 1.0,
        every: int = 1,
        cap: float | None = None,
        gradient: Sequence[Any] | Tensor | None = None,
        target: float | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """As `GradientGuidance`; `data_std` is d.

        Raises:
            ValueError: if `data_std` is not positive; as `GradientGuidance`.
        """
        super().__init__(strength, every=every, cap=cap, gradient=gradient, target=target, positive=positive)
        if not data_std > 0:
            raise ValueError(f"NaiveGradient needs data_std > 0, got {data_std}")
        self.data_std = data_std

    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """Return the label and g d^2 / (d^2 + sigma^2) (B, *)."""
        prediction = predict(x, sigma, condition)
        check_gradient_shape(gradient, prediction.clean)
        jacobian = gradient.expand_as(x) / (1 + (sigma / self.data_std) ** 2)
        value, along = (gradient * prediction.clean).flatten(1).sum(1), (gradient * jacobian).flatten(1).sum(1)
        return Linearization(prediction, value, jacobian, along)
