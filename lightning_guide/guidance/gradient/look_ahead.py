"""Look-ahead guidance G_loss: the gradient runs through the denoiser and therefore stays on the data's support.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, definition 1, lemma 1 and theorem 1: G = c J with
J = grad_x g^T D(x, sigma) = (dD/dx)^T g, one vector-Jacobian product for the whole batch. For data on a subspace
span(A) the exact dD/dx is symmetric with range span(A), so G lies in span(A) for every g.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Predict, Prediction
from lightning_guide.guidance.gradient.base import GradientGuidance, Linearization, check_seen
from lightning_guide.guidance.gradient.strengths import Strength

__all__ = ["LookAhead", "LookAheadWithoutJacobian"]


class LookAhead(GradientGuidance):
    """J = grad_x g^T D(x). One evaluation and one backward pass through the positive and, if any, the decoder."""

    def __init__(
        self,
        strength: Strength | None = None,
        *,
        decoder: nn.Module | None = None,
        every: int = 1,
        cap: float | None = None,
        gradient: Sequence[Any] | Tensor | None = None,
        target: float | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """As `GradientGuidance`; with a `decoder` of latents the objective and g see decoder(x).

        J is then grad_x g^T decoder(D(x)), through both, as in the paper's experiment with pictures.

        Raises:
            ValueError: as `GradientGuidance`.
        """
        super().__init__(strength, every=every, cap=cap, gradient=gradient, target=target, positive=positive)
        self.decoder = decoder

    def seen(self, x: Tensor) -> Tensor:
        """decoder(x), or `x` without a decoder."""
        return x if self.decoder is None else self.decoder(x)

    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """The label and its gradient with respect to `x`.

        Raises:
            ValueError: if gradients are switched off for good (inference mode), or shapes disagree.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError(
                f"{type(self).__name__} takes gradients through the denoiser; expected Trainer(inference_mode=False)"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            prediction = predict(leaf, sigma, condition)
            seen = self.seen(prediction.clean)
            check_seen(gradient, seen)
            value = (gradient * seen).flatten(1).sum(1)
            pull, jacobian = torch.autograd.grad(value.sum(), [prediction.clean, leaf])
        noise = None if prediction.noise is None else prediction.noise.detach()
        along = (pull * jacobian).flatten(1).sum(1)
        return Linearization(Prediction(prediction.clean.detach(), noise), value.detach(), jacobian, along)


class LookAheadWithoutJacobian(GradientGuidance):
    """J = g: the score inside D = x + sigma^2 score is taken for a constant. No backward pass at all.

    Cheaper, and off the support like the naive guidance: the part of g that leaves it is not projected away.
    """

    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """The label and g (B, *)."""
        prediction = predict(x, sigma, condition)
        check_seen(gradient, prediction.clean)
        value, square = (gradient * prediction.clean).flatten(1).sum(1), gradient.flatten(1).square().sum(1)
        return Linearization(prediction, value, gradient.expand_as(x), square.expand(len(x)))
