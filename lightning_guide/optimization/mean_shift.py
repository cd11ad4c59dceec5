"""Fine-tuning of the mean only, the score class of the analysis in Guo et al. 2024, https://arxiv.org/abs/2404.14743.

Section 5: the score is linear, s(x) = C x + b, C is frozen and only b is refitted. For any denoiser D_0 the shifted
data x_0 + m have D(x) = m + D_0(x - m). For a Gaussian that is the whole class, and the weighted score-matching loss is
minimal where m + E_0[x] is the weighted mean of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, DerivedDenoiser, Models
from lightning_guide.guidance.base import Reference
from lightning_guide.training.losses import LossTerms, TrainingLoss

__all__ = ["MeanRefit", "Shifted"]


class Shifted(DerivedDenoiser):
    """D(x, sigma) = m + D_0(x - m, sigma): the data of `denoiser`, shifted by the learned `offset` m."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Freeze `denoiser` D_0 and set the offset to 0. A reference is replaced by its model in `resolve`."""
        super().__init__()
        if isinstance(denoiser, Reference):
            self.denoiser: Denoiser = denoiser
            return
        self.denoiser = denoiser.requires_grad_(False)
        self.offset = nn.Parameter(torch.zeros(self.data_shape))

    @property
    def underlying(self) -> Denoiser:
        """The model."""
        return self.denoiser

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D (B, *data_shape)."""
        offset = self.offset.to(x.dtype)
        return offset + self.denoiser(x - offset, sigma, condition)

    def resolve(self, models: Models) -> Denoiser:
        """Return itself or, for a reference, the shift of its model."""
        return Shifted(self.denoiser.resolve(models)) if isinstance(self.denoiser, Reference) else self


class MeanRefit(TrainingLoss):
    """|m - x|^2 / 2 summed over the elements of an example, for a `Shifted` denoiser of data with mean 0.

    The score-matching loss of a Gaussian is |(I - K)(m - x)|^2 plus a constant, K = Sigma (Sigma + sigma^2 I)^-1. Its
    minimum over m is the same, the weighted mean of the data. One step of SGD with rate 1 is the refit.
    """

    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        """Return the terms (B,), the same at every noise level.

        Raises:
            ValueError: if `denoiser` has no offset.
        """
        if not isinstance(denoiser, Shifted):
            raise ValueError(f"MeanRefit trains the offset of a Shifted denoiser, got a {type(denoiser).__name__}")
        error = (denoiser.offset - clean).square().flatten(1).sum(1) / 2
        return LossTerms(error, error, sigma)
