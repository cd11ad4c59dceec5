"""CLIP score, the similarity of images and the prompts of their classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.clip import ClipFeatures
from lightning_guide.evaluation.metrics.prompt_score import PromptScore
from lightning_guide.utils.devices import to_device

__all__ = ["ClipScore"]


class ClipScore(PromptScore):
    """CLIP score `clip_score`: mean of 100 max(cos(image, prompt), 0) over the samples with a label.

    Hessel et al. 2021, https://arxiv.org/abs/2104.08718 (with 2.5 instead of 100).
    """

    key = "clip_score"

    def __init__(self, extractor: ClipFeatures, prompts: Sequence[str] | str) -> None:
        """Take CLIP features and a text per class or prompt, as "a photo of an airplane", or a file with one a line."""
        super().__init__(prompts)
        self.extractor = extractor
        self.register_buffer("words", torch.empty(0, 0), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Embed the prompts; the data are not read.

        Raises:
            ValueError: if the weights cannot be found.
        """
        self.words = F.normalize(self.extractor.words(self.prompts, self.device), dim=1)

    def values(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scores of the images with a label, and their rows.

        Raises:
            ValueError: if `prepare` was not called, or a label has no prompt.
        """
        self._check_prepared(len(self.words) > 0)
        return super().values(x, condition)

    def scores(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return 100 max(cos, 0), from 0 to 100, (B,)."""
        images = F.normalize(self.extractor(x), dim=1)
        return 100 * (images * self.words[to_device(labels, self.device)]).sum(1).clamp(min=0)
