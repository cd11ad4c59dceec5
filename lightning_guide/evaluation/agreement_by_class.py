"""Class agreement class by class: which labels or prompts does a model answer, and which not?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import ClassifierFeatures
from lightning_guide.evaluation.metric import SampleMetric

__all__ = ["AgreementByClass"]


class AgreementByClass(SampleMetric):
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
