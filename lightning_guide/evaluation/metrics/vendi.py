"""Vendi score, the effective number of different samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.base import SampleMetric

__all__ = ["VendiScore", "vendi_score"]


def vendi_score(eigenvalues: Tensor, q: float = 1.0) -> Tensor:
    """Return exp of the Renyi entropy of order q of `eigenvalues` (F,) that sum to one: (sum l^q)^(1 / (1 - q)).

    For q = 1 it is exp(-sum l log l), for q = inf 1 / max l. Values that are zero up to rounding are left out.

    Examples:
        >>> [round(float(vendi_score(torch.tensor([0.5, 0.5, 0.0]), q)), 6) for q in (0.5, 1, 2, math.inf)]
        [2.0, 2.0, 2.0, 2.0]
    """
    rounding = eigenvalues.max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    values = eigenvalues[eigenvalues > rounding]
    if q == 1:
        return torch.special.entr(values).sum().exp()
    if math.isinf(q):
        return 1 / values.max()
    return (values**q).sum() ** (1 / (1 - q))


class VendiScore(SampleMetric):
    r"""Vendi score `vendi`, from 1 for equal samples to their number N for orthogonal ones; higher is more diverse.

    exp(-sum l log l) with the eigenvalues l of K / N, where K_ij is the cosine of the features of samples i and j;
    `vendi_<q>` is that of order q (`vendi_score`). Friedman and Dieng 2023, https://arxiv.org/abs/2210.02410; orders:
    Pasarkar and Dieng 2024, https://arxiv.org/abs/2310.12952. K / N has the eigenvalues of the second moment of the
    unit-length features, (F, F), which is summed: no samples are held. It tells nothing about quality, and compares
    equal numbers of samples only.
    """

    reads_data = False
    count: Tensor
    outer: Tensor

    def __init__(self, extractor: FeatureExtractor, *, orders: Sequence[float] = (1.0,)) -> None:
        """Choose the extractor and the `orders` q: small ones count rare samples, large ones the common.

        Raises:
            ValueError: unless all orders are positive.
        """
        super().__init__()
        if not orders or not all(q > 0 for q in orders):
            raise ValueError(f"VendiScore needs positive orders, got {list(orders)}")
        self.extractor, self.orders = extractor, tuple(orders)
        self.add_sum("count")
        self.add_sum("outer", 0, 0)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Read the number of features from the first real example; the others are not used.

        Raises:
            ValueError: if there is no example.
        """
        first = next(iter(reference), None)
        if first is None:
            raise ValueError("VendiScore needs at least one real example to determine the number of features")
        width = self.extractor(first.x[:1].to(self.device)).shape[1]
        self.add_sum("outer", width, width)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add samples `x` (B, *); labels are ignored.

        Raises:
            ValueError: if `prepare` was not called.
        """
        self._check_prepared(self.outer.numel() > 0)
        rows = F.normalize(self.extractor(x.to(self.device)).to(torch.float64), dim=1)
        self.count += len(rows)
        self.outer += rows.mT @ rows

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; NaN without samples."""
        self._check_prepared(self.outer.numel() > 0)
        names = ["vendi" if q == 1 else f"vendi_{q:g}" for q in self.orders]
        if not self.count > 0:
            return dict.fromkeys(names, torch.full_like(self.count, torch.nan))
        eigenvalues = torch.linalg.eigvalsh(self.outer / self.count)
        return {name: vendi_score(eigenvalues, q) for name, q in zip(names, self.orders, strict=True)}
