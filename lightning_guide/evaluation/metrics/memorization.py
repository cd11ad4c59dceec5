"""Memorization, the share of samples that are copies of training examples.

Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize": a sample is memorized if its
nearest training example is less than a third as far away as the second nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.features import FeatureMetric

__all__ = ["Memorization"]


class Memorization(FeatureMetric):
    """Memorization: share of samples whose nearest real example is closer than `ratio` times the second nearest.

    `nearest` is the mean distance to the nearest example. The reference should be the whole training set.
    """

    least = 2

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        ratio: float = 1 / 3,
        max_reference: int = 1_000_000,
        chunk: int = 256,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `FeatureMetric`, the `ratio`, and the number of rows at a time, `chunk`.

        Raises:
            ValueError: unless 0 < ratio < 1.
        """
        super().__init__(extractor, max_reference=max_reference, cache=cache)
        if not 0 < ratio < 1:
            raise ValueError(f"Memorization needs a ratio between 0 and 1, got {ratio}")
        self.ratio, self.chunk = ratio, chunk

    def compute(self) -> dict[str, Tensor]:
        """Return `memorized`, a share, and `nearest`, in units of the features.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        center = self.reference.to(torch.float64).mean(0)
        real, samples = self.reference.to(torch.float64) - center, self.generated().to(torch.float64) - center
        two = torch.cat(
            [torch.cdist(part, real).topk(2, dim=1, largest=False).values for part in samples.split(self.chunk)]
        )
        copied = (two[:, 0] < self.ratio * two[:, 1]) | (two[:, 1] == 0)
        return {"memorized": copied.to(torch.float64).mean(), "nearest": two[:, 0].mean()}
