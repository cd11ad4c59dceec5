"""Inception score, Salimans et al. 2016, https://arxiv.org/abs/1606.03498."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.base import SampleMetric

__all__ = ["InceptionScore", "Judge"]


class Judge(Protocol):
    """Feature extractor with class logits."""

    def logits(self, x: Tensor) -> Tensor:
        """Return class logits (B, K) of data in stored form."""


class InceptionScore(SampleMetric):
    r"""Inception score `inception_score` = exp(E KL(p(y | x) || p(y))), from 1 to the number of classes K.

    All samples are one set, and only sums are held. Published scores are means over ten parts of 50,000 samples, which
    are slightly lower. The key is the same for all classifiers; scores of different classifiers are not comparable.
    """

    reads_data = False
    count: Tensor
    probabilities: Tensor
    negative_entropy: Tensor

    def __init__(self, extractor: Judge) -> None:
        """Use the classifier of `extractor`."""
        super().__init__()
        self.extractor = extractor
        self.add_sum("count")
        self.add_sum("probabilities", 0)
        self.add_sum("negative_entropy")

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Read the number of classes from the logits of the first real example.

        Raises:
            ValueError: if there is no example.
        """
        first = next(iter(reference), None)
        if first is None:
            raise ValueError("InceptionScore needs at least one real example to determine the number of classes")
        self.add_sum("probabilities", self.extractor.logits(first.x[:1].to(self.device)).shape[1])

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add samples `x` (B, *); labels are ignored.

        Raises:
            ValueError: if `prepare` was not called.
        """
        self._check_prepared(self.probabilities.numel() > 0)
        log_p = self.extractor.logits(x.to(self.device)).to(torch.float64).log_softmax(1)
        self.count += len(x)
        self.probabilities += log_p.exp().sum(0)
        self.negative_entropy += (log_p.exp() * log_p).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `inception_score`; NaN without samples."""
        self._check_prepared(self.probabilities.numel() > 0)
        marginal = self.probabilities / self.count
        entropy = -torch.special.xlogy(marginal, marginal).sum()
        return {"inception_score": (self.negative_entropy / self.count + entropy).exp()}
