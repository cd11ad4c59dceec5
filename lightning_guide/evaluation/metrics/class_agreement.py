"""Class agreement: does a classifier see in a sample the class that was asked for?

Class agreement class by class: which labels or prompts does a model answer, and which not?

Class shares: how often a classifier sees each class among the samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import ClassifierFeatures
from lightning_guide.evaluation.metrics.base import SampleMetric

__all__ = ["AccuracyByClass", "ClassAccuracy", "ClassShares"]


class ClassAccuracy(SampleMetric):
    """Share of the samples with a label whose predicted class is this label; samples without one do not count.

    The classifier should have learnt from other examples than the generator, or an error that both share stays hidden.
    """

    agreed: Tensor
    labeled: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Asks the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("agreed")
        self.add_sum("labeled")

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Loads the classifier; reads no data.

        Raises:
            ValueError: if the classifier cannot be loaded.
        """
        self.extractor.classifier(self.device)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds pictures `x` uint8 (B, C, H, W) with labels `condition` (B,), -1 or None = no label."""
        if condition is None:
            return
        condition = condition.to(self.device)
        predicted = self.extractor.logits(x.to(self.device)).argmax(1)
        self.agreed += ((predicted == condition) & (condition >= 0)).sum()
        self.labeled += (condition >= 0).sum()

    def compute(self) -> dict[str, Tensor]:
        """`class_agreement`, between 0 and 1; NaN if no sample had a label."""
        share = self.agreed / self.labeled if self.labeled > 0 else torch.full_like(self.agreed, torch.nan)
        return {"class_agreement": share}


class AccuracyByClass(SampleMetric):
    """For each class asked for, the share of its samples in which a classifier sees that class.

    Of data whose conditions are embeddings, the class asked for is the number of the prompt.
    """

    table: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Asks the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("table", 0, 0)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Loads the classifier; reads no data.

        Raises:
            ValueError: if the classifier cannot be loaded.
        """
        classes = self.extractor.classifier(self.device).num_classes
        self.add_sum("table", classes, classes)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds pictures `x` uint8 (B, C, H, W) with `condition` (B,), -1 or None = no wish.

        Raises:
            ValueError: if `prepare` is still to be called, or the classifier does not know a class asked for.
        """
        self._check_prepared(len(self.table) > 0)
        if condition is None:
            return
        wanted, count = condition.to(self.device), len(self.table)
        if bool((wanted >= count).any()):
            raise ValueError(f"class {int(wanted.max())} was asked for; the classifier knows 0 to {count - 1}")
        seen, kept = self.extractor.logits(x.to(self.device)).argmax(1), wanted >= 0
        cells = torch.bincount(wanted[kept] * count + seen[kept], minlength=count**2)
        self.table += cells.reshape(count, count)

    def compute(self) -> dict[str, Tensor]:
        """`class_<k>` for each class, between 0 and 1; NaN for one that no sample was asked for."""
        shares = self.table.diagonal() / self.table.sum(dim=1)
        return {f"class_{k}": share for k, share in enumerate(shares)}


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
