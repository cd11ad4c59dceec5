"""Class shares: how often a classifier sees each class among the samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import ClassifierFeatures
from lightning_guide.evaluation.metric import SampleMetric

__all__ = ["ClassShares"]


class ClassShares(SampleMetric):
    """`share_0`, `share_1`, ...: shares of the samples that a classifier takes for each class; they sum to one."""

    counts: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Asks the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("counts", 0)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Loads the classifier; reads no data.

        Raises:
            ValueError: if the classifier cannot be loaded.
        """
        self.add_sum("counts", self.extractor.classifier(self.device).num_classes)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds pictures `x` uint8 (B, C, H, W); labels do not matter.

        Raises:
            ValueError: if `prepare` is still to be called.
        """
        self._check_prepared(self.counts.numel() > 0)
        predicted = self.extractor.logits(x.to(self.device)).argmax(1)
        self.counts += torch.bincount(predicted, minlength=self.counts.numel())

    def compute(self) -> dict[str, Tensor]:
        """The shares; NaN without samples."""
        return {f"share_{label}": share for label, share in enumerate(self.counts / self.counts.sum())}
