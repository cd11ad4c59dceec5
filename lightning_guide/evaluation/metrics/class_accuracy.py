"""Class accuracy under a classifier, in total and by class, and shares of the predicted classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import ClassifierFeatures
from lightning_guide.evaluation.metrics.base import SampleMetric

__all__ = ["AccuracyByClass", "ClassAccuracy", "ClassShares"]


class ClassAccuracy(SampleMetric):
    """Share of the labeled samples whose predicted class is their label.

    Train the classifier on other examples than the generator; otherwise shared errors remain hidden.
    """

    reads_data = False
    agreed: Tensor
    labeled: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Use the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("agreed")
        self.add_sum("labeled")

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Load the classifier; the data are not read.

        Raises:
            ValueError: if the classifier cannot be loaded.
        """
        self.extractor.classifier(self.device)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add images `x` uint8 (B, C, H, W) with labels `condition` (B,); -1 or None: unlabeled."""
        if condition is None:
            return
        condition = condition.to(self.device)
        predicted = self.extractor.logits(x.to(self.device)).argmax(1)
        self.agreed += ((predicted == condition) & (condition >= 0)).sum()
        self.labeled += (condition >= 0).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `class_agreement`, between 0 and 1; NaN without labeled samples."""
        share = self.agreed / self.labeled if self.labeled > 0 else torch.full_like(self.agreed, torch.nan)
        return {"class_agreement": share}


class AccuracyByClass(SampleMetric):
    """Class accuracy by class: for each label, the share of its samples whose predicted class is the label.

    If conditions are embeddings, the label is the number of the prompt.
    """

    reads_data = False
    table: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Use the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("table", 0, 0)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Load the classifier; the data are not read.

        Raises:
            ValueError: if the classifier cannot be loaded.
        """
        classes = self.extractor.classifier(self.device).num_classes
        self.add_sum("table", classes, classes)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add images `x` uint8 (B, C, H, W) with labels `condition` (B,); -1 or None: unlabeled.

        Raises:
            ValueError: if `prepare` was not called, or the classifier lacks a class.
        """
        self._check_prepared(len(self.table) > 0)
        if condition is None:
            return
        labels, count = condition.to(self.device), len(self.table)
        if bool((labels >= count).any()):  # waits once a batch, to say so in a sentence
            raise ValueError(f"class label {int(labels.max())} is out of range; the classifier has {count} classes")
        predicted, labeled = self.extractor.logits(x.to(self.device)).argmax(1), labels >= 0
        cells = self.table.new_zeros(count**2)  # bincount and labels[labeled] would wait for their sizes
        cells.index_add_(0, labels.clamp(min=0) * count + predicted, labeled.to(cells.dtype))
        self.table += cells.reshape(count, count)

    def compute(self) -> dict[str, Tensor]:
        """Return `class_<k>` for each class, between 0 and 1; NaN for a class without samples."""
        shares = self.table.diagonal() / self.table.sum(dim=1)
        return {f"class_{k}": share for k, share in enumerate(shares)}


class ClassShares(SampleMetric):
    """Class shares `share_0`, `share_1`, ...: shares of the samples by predicted class; they sum to one."""

    reads_data = False
    counts: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Use the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("counts", 0)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Load the classifier; the data are not read.

        Raises:
            ValueError: if the classifier cannot be loaded.
        """
        self.add_sum("counts", self.extractor.classifier(self.device).num_classes)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add images `x` uint8 (B, C, H, W); labels are ignored.

        Raises:
            ValueError: if `prepare` was not called.
        """
        self._check_prepared(self.counts.numel() > 0)
        predicted = self.extractor.logits(x.to(self.device)).argmax(1)
        self.counts.index_add_(0, predicted, torch.ones_like(predicted, dtype=self.counts.dtype))

    def compute(self) -> dict[str, Tensor]:
        """Return the shares; NaN without samples."""
        return {f"share_{label}": share for label, share in enumerate(self.counts / self.counts.sum())}
