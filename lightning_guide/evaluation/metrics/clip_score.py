"""CLIP score, the similarity of images and the prompts of their classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.clip import ClipFeatures
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.pretrained.prompts import read_prompts

__all__ = ["ClipScore"]


class ClipScore(SampleMetric):
    """CLIP score `clip_score`: mean of 100 max(cos(image, prompt), 0) over the samples with a label.

    Hessel et al. 2021, https://arxiv.org/abs/2104.08718 (with 2.5 instead of 100).
    """

    reads_data = False
    total: Tensor
    count: Tensor

    def __init__(self, extractor: ClipFeatures, prompts: Sequence[str] | str) -> None:
        """Take CLIP features and a text per class or prompt, as "a photo of an airplane", or a file with one a line."""
        super().__init__()
        if not prompts:
            raise ValueError("ClipScore needs a prompt for each class, got none")
        self.extractor, self.prompts = extractor, read_prompts(prompts)
        self.register_buffer("words", torch.empty(0, 0), persistent=False)
        self.add_sum("total")
        self.add_sum("count")

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Embed the prompts; the data are not read.

        Raises:
            ValueError: if the weights cannot be found.
        """
        self.words = F.normalize(self.extractor.words(self.prompts, self.device), dim=1)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add images `x` uint8 (B, C, H, W) with labels `condition` (B,); -1 or None: unlabeled.

        Raises:
            ValueError: if `prepare` was not called, or a label has no prompt.
        """
        self._check_prepared(len(self.words) > 0)
        if condition is None or not bool((condition >= 0).any()):
            return
        labeled = condition >= 0
        labels = condition[labeled].to(self.device)
        if int(labels.max()) >= len(self.prompts):
            raise ValueError(f"ClipScore has {len(self.prompts)} prompts, and none for class {int(labels.max())}")
        images = F.normalize(self.extractor(x[labeled].to(self.device)), dim=1)
        self.total += 100 * (images * self.words[labels]).sum(1).clamp(min=0).to(torch.float64).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return `clip_score`, from 0 to 100; NaN without labeled samples."""
        return {"clip_score": self.total / self.count}
