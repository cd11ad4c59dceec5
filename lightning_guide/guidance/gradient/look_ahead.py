"""Look-ahead gradient guidance (G_loss), Guo et al. 2024, https://arxiv.org/abs/2404.14743: through the denoiser.

Definition 1, lemma 1 and theorem 1: G = c J with J = grad_x g^T D(x, sigma) = (dD/dx)^T g, one vector-Jacobian product
for the whole batch. G stays on the support of the data: for data on a subspace span(A) the exact dD/dx is symmetric
with range span(A), so G lies in span(A) for every g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Predict
from lightning_guide.guidance.gradient.base import GradientGuidance, Linearization, check_gradient_shape
from lightning_guide.guidance.gradient.strengths import Strength

__all__ = ["LookAhead", "LookAheadWithoutJacobian"]


class LookAhead(GradientGuidance):
    """Look-ahead gradient guidance, J = grad_x g^T D(x).

    One evaluation and one backward pass through the positive and, if any, the decoder.

    Examples:
        >>> from lightning_guide.distributions import gaussian
        >>> guide = LookAhead(gradient=[1.0, 0.0], target=3.0, positive=gaussian([0.0, 0.0], 1.0))
        >>> guide(torch.tensor([[2.0, 2.0]]), torch.tensor(1.0))  # nearly E[x_0 | x, first component 3]
        tensor([[2.9608, 1.0000]])
    """

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
        """As `GradientGuidance`; with a `decoder` of latents the objective is evaluated at decoder(x).

        J is then grad_x g^T decoder(D(x)), through both, as in the paper's experiment with images.

        Raises:
            ValueError: as `GradientGuidance`.
        """
        super().__init__(strength, every=every, cap=cap, gradient=gradient, target=target, positive=positive)
        self.decoder = decoder

    def objective_input(self, x: Tensor) -> Tensor:
        """Return decoder(x), or `x` without a decoder."""
        return x if self.decoder is None else self.decoder(x)

    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """Return the label and its gradient with respect to `x`.

        Raises:
            ValueError: in inference mode, which disables gradients, or if shapes disagree.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError(
                f"{type(self).__name__} takes gradients through the denoiser; expected Trainer(inference_mode=False)"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            prediction = predict(leaf, sigma, condition)
            inputs = self.objective_input(prediction.clean)
            check_gradient_shape(gradient, inputs)
            value = (gradient * inputs).flatten(1).sum(1)
            u, jacobian = torch.autograd.grad(value.sum(), [prediction.clean, leaf])
        noise = None if prediction.noise is None else prediction.noise.detach()
        along = (u * jacobian).flatten(1).sum(1)
        detached = replace(prediction, clean=prediction.clean.detach(), noise=noise)
        return Linearization(detached, value.detach(), jacobian, along)


class LookAheadWithoutJacobian(GradientGuidance):
    """Look-ahead gradient guidance with J = g, the score inside D = x + sigma^2 score treated as a constant.

    No backward pass. Cheaper, and off the support like the naive guidance: the part of g that leaves the support is not
    projected away.
    """

    def linearize(
        self, predict: Predict, x: Tensor, sigma: Tensor, condition: Tensor | None, gradient: Tensor
    ) -> Linearization:
        """Return the label and g (B, *)."""
        prediction = predict(x, sigma, condition)
        check_gradient_shape(gradient, prediction.clean)
        value, square = (gradient * prediction.clean).flatten(1).sum(1), gradient.flatten(1).square().sum(1)
        return Linearization(prediction, value, gradient.expand_as(x), square.expand(len(x)))
