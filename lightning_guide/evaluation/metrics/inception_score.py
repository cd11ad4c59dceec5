"""Inception score: are samples of clear and of many classes? Salimans et al. 2016, https://arxiv.org/abs/1606.03498."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.base import SampleMetric

__all__ = ["InceptionScore", "Judge"]


class Judge(Protocol):
    """An extractor that also classifies."""

    def logits(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of data in stored form."""


class InceptionScore(SampleMetric):
    r"""`inception_score` = exp(E KL(p(y | x) || p(y))), from 1 to the number of classes K, over all samples as one set.

    Sums alone are held. Published scores are means over ten parts of 50,000 samples, which lie a little lower. The name
    is kept whatever the classifier; scores under different classifiers do not compare.
    """

    count: Tensor
    probabilities: Tensor
    negative_entropy: Tensor

    def __init__(self, extractor: Judge) -> None:
        """Asks the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("count")
        self.add_sum("probabilities", 0)
        self.add_sum("negative_entropy")

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Learns the number of classes from the first real examples.

        Raises:
            ValueError: if there are none.
        """
        first = next(iter(reference), None)
        if first is None:
            raise ValueError("InceptionScore needs at least one real example to learn the number of classes from")
        self.add_sum("probabilities", self.extractor.logits(first.x[:1].to(self.device)).shape[1])

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds samples `x` (B, *); labels do not matter.

        Raises:
            ValueError: if `prepare` is still to be called.
        """
        self._check_prepared(self.probabilities.numel() > 0)
        log_p = self.extractor.logits(x.to(self.device)).to(torch.float64).log_softmax(1)
        self.count += len(x)
        self.probabilities += log_p.exp().sum(0)
        self.negative_entropy += (log_p.exp() * log_p).sum()

    def compute(self) -> dict[str, Tensor]:
        """`inception_score`; NaN without samples."""
        self._check_prepared(self.probabilities.numel() > 0)
        marginal = self.probabilities / self.count
        entropy = -torch.special.xlogy(marginal, marginal).sum()
        return {"inception_score": (self.negative_entropy / self.count + entropy).exp()}
