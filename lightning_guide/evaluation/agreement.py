"""Class agreement: does a classifier see in a sample the class that was asked for?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import ClassifierFeatures
from lightning_guide.evaluation.metric import SampleMetric

__all__ = ["ClassAgreement"]


class ClassAgreement(SampleMetric):
    """Share of the samples with a label whose predicted class is this label; samples without one do not count.

    The classifier should have learnt from other examples than the generator, or an error that both share stays hidden.
    """

    agreed: Tensor
    labelled: Tensor

    def __init__(self, extractor: ClassifierFeatures) -> None:
        """Asks the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("agreed")
        self.add_sum("labelled")

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
        self.labelled += (condition >= 0).sum()

    def compute(self) -> dict[str, Tensor]:
        """`class_agreement`, between 0 and 1; NaN if no sample had a label."""
        share = self.agreed / self.labelled if self.labelled > 0 else torch.full_like(self.agreed, torch.nan)
        return {"class_agreement": share}
