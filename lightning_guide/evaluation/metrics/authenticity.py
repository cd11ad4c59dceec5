"""Authenticity, the share of samples that are no noisy copies of training examples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.features import FeatureMetric

__all__ = ["Authenticity"]


class Authenticity(FeatureMetric):
    """Authenticity: share of samples farther from their nearest real example than its nearest other real example is.

    Alaa et al. 2022, https://arxiv.org/abs/2102.08921, section 4.3; in percent it is AuthPct of Stein et al. 2023,
    https://arxiv.org/abs/2306.04675. From 0 to 1; copies have 0, samples far from all examples 1. New draws of the
    distribution of the examples have more in more dimensions, of Gaussians 0.35 in 2 and 0.84 in 128: compare with
    held-out data. The reference should be the whole training set. The section number was not verified.
    """

    least = 2

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        max_reference: int = 1_000_000,
        chunk: int = 256,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `FeatureMetric` and the number of rows at a time, `chunk`."""
        super().__init__(extractor, max_reference=max_reference, cache=cache)
        self.chunk = chunk

    def compute(self) -> dict[str, Tensor]:
        """Return `authenticity`; the cost is at most twice samples x examples distances.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        center = self.reference.to(torch.float64).mean(0)
        real, samples = self.reference.to(torch.float64) - center, self.generated().to(torch.float64) - center
        nearest = [torch.cdist(part, real).min(dim=1) for part in samples.split(self.chunk)]
        distance, example = torch.cat([each.values for each in nearest]), torch.cat([each.indices for each in nearest])
        examples, place = example.unique(return_inverse=True)
        apart = torch.cat([self._to_others(rows, real) for rows in examples.split(self.chunk)])
        rounding = 1e-6 * real.square().sum(1).mean().sqrt()  # of the distance of equal rows
        return {"authenticity": (distance > apart[place] + rounding).to(torch.float64).mean()}

    def _to_others(self, rows: Tensor, real: Tensor) -> Tensor:
        """Return the distances (n,) of `real[rows]` to their nearest other rows of `real` (N, F)."""
        distances = torch.cdist(real[rows], real)
        return distances.scatter(1, rows[:, None], torch.inf).min(dim=1).values
