"""Rectified gradient guidance (REG): the difference weighted by the gradient of the clean estimate.

Gao et al. 2025, "REG: Rectified Gradient Guidance for Conditional Diffusion Models",
https://arxiv.org/abs/2501.18865, in the form of its EDM2 experiments:

    D = D_pos + (w - 1) g * (D_pos - D_neg),    g = d(sum of D_pos) / dx    `(B, *)`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import Branch, Combination, Negatives, Pair, Plain, move

__all__ = ["RectifiedGradient"]


class RectifiedGradient(Combination):
    """REG, for any kind of negative. Plain at strength 0.

    g takes one vector-Jacobian product through the positive, counted as often as the positive itself: 3 evaluations
    with one negative. It needs the memory of one backward pass, freed before the negatives are evaluated. Gradients
    through the guided denoiser treat g as a constant.
    """

    calls_at_x = False

    def __init__(self, *, strength: float = 1.0) -> None:
        """`strength` in [0, 1]: the difference is multiplied by 1 + strength (g - 1).

        Raises:
            ValueError: if `strength` is outside.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"RectifiedGradient needs a strength between 0 (plain) and 1, got {strength}")
        self.strength = strength

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the rule's prediction; gradients are counted among the evaluations of `trajectory`."""
        if self.strength == 0 or all(weight == 1 for weight, _ in negatives):
            return Plain().combine(positive, negatives, x, sigma, trajectory)
        before = trajectory.evaluations
        point, guided, g = _with_gradient(positive, x, sigma)
        trajectory.evaluations += trajectory.evaluations - before
        pos, factor = guided, 1 + self.strength * (g - 1)
        for weight, negative in negatives:
            if weight != 1:
                # the same tensor as for the positive, so that a `PredictionNegative` of it finds it evaluated
                pair = Pair(pos, negative(point, sigma), weight, x, sigma)
                guided = move(guided, (weight - 1) * factor * pair.difference, pair)
        return guided


def _with_gradient(positive: Branch, x: Tensor, sigma: Tensor) -> tuple[Tensor, Prediction, Tensor]:
    """Return the `x` given to the positive, its prediction, and g (B, *)."""
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if outer and x.requires_grad else x.detach().requires_grad_()
        pos = positive(point, sigma)
        g = None
        if pos.clean.requires_grad:
            ones = torch.ones_like(pos.clean)
            (g,) = torch.autograd.grad(pos.clean, point, ones, retain_graph=outer, allow_unused=True)
    if g is None:
        raise ValueError("RectifiedGradient needs a positive that can be differentiated by x; this one cannot")
    if outer:
        return point, pos, g
    return point, replace(pos, clean=pos.clean.detach(), noise=None if pos.noise is None else pos.noise.detach()), g
