"""Base of metrics that are a mean over samples."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.utils.devices import to_device

__all__ = ["MeanMetric"]


class MeanMetric(SampleMetric):
    """Base of metrics that are the mean of a number of each sample, over the samples that have one.

    Attributes:
        key: of the result.
    """

    key: ClassVar[str]
    reads_data = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        """Declare the sums."""
        super().__init__()
        self.add_sum("total")
        self.add_sum("count")

    @abstractmethod
    def values(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the numbers (n,) of those of the samples `x` that have one, and their rows in `x` (n,), on the host.

        Raises:
            ValueError: if `prepare` was not called.
        """

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add samples `x` (B, *) in stored form with their labels `condition` (B,).

        Raises:
            ValueError: as of `values`.
        """
        values, rows = self.values(x, condition)
        self.total += to_device(values.double().sum(), self.device)
        self.count += len(rows)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean; NaN if no sample has a number."""
        return {self.key: self.total / self.count}
