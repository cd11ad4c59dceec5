"""Sampling of a model of guidance-free training (GFT), guided by one call.

Chen et al. 2025, "Visual Generation Without Guidance", https://arxiv.org/abs/2501.15420.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_guide.conditioning import conditioned_rows
from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.networks.gft import BetaConditioned

__all__ = ["GuidanceFree"]


class GuidanceFree(Guidance):
    """GFT: D(x, c, beta) with beta = 1 / w of a model trained by `GuidanceFreeLoss`. One evaluation.

    An exactly trained model has D_u + w (D_c - D_u), that of classifier-free guidance. Samples without condition have
    beta = 1. Other guidances go around it: it is a model like any other.
    """

    start = Denoiser.start  # no state: compiled as one with its model

    def __init__(self, weight: float = 1.5, *, positive: Denoiser | None = None) -> None:
        """`weight` w, 1 is off; `positive` is the model, by default the one under evaluation.

        Raises:
            ValueError: unless the weight is 1 or more, and finite.
        """
        super().__init__()
        if not 1 <= weight < math.inf:
            raise ValueError(f"GuidanceFree needs a finite weight of 1 or more, since beta is 1 / w, got {weight}")
        self.weight, self.positive = weight, positive if positive is not None else Main()

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models.

        Raises:
            ValueError: if the model has no input beta.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, GuidanceFree)
        if not isinstance(resolved.positive, BetaConditioned):
            kind = type(resolved.positive).__name__
            raise ValueError(f"GuidanceFree needs a model trained with the input beta, BetaConditioned, got a {kind}")
        return resolved

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence at the weight 1."""
        if self.weight == 1:
            yield "GuidanceFree has the weight 1, which is off"

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D (B, *)."""
        if condition is None or self.weight == 1:
            return self.positive(x, sigma, condition)
        beta = torch.where(conditioned_rows(condition), 1 / self.weight, 1.0)
        return self.positive(x, sigma, condition, beta=beta)
