"""Aesthetic score, a published head on CLIP embeddings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.clip import ClipFeatures
from lightning_guide.evaluation.metrics.mean import MeanMetric
from lightning_guide.objectives.reward import FileHead

__all__ = ["AestheticScore"]


class AestheticScore(MeanMetric):
    """Aesthetic score `aesthetic`: mean of head(e / |e|) over samples with CLIP embeddings e; higher is better.

    The head is a file of linear layers (`FileHead`), such as LAION's aesthetics predictor for OpenAI's ViT-L/14, whose
    training scores run from 1 to 10. That it reads embeddings of length 1 is remembered; no published score was
    reproduced.
    """

    key = "aesthetic"

    def __init__(self, extractor: ClipFeatures, head: str) -> None:
        """Take CLIP features and the file of the `head`.

        Raises:
            ValueError: if the file cannot be read, or does not hold linear layers to one output.
        """
        super().__init__()
        self.extractor, self.head = extractor, FileHead(head)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Load the weights; the data are not read.

        Raises:
            ValueError: if they cannot be found.
        """
        self.extractor.load()

    def values(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scores of images `x` uint8 (B, C, H, W); labels are ignored.

        Raises:
            ValueError: if the head takes another number of features.
        """
        with torch.no_grad():
            values = self.head(F.normalize(self.extractor(x.to(self.device)), dim=1))
        return values, torch.arange(len(x))
