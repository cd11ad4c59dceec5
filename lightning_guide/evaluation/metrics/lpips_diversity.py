"""LPIPS diversity, the mean perceptual distance of two samples of one class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.lpips import LpipsFeatures
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.metrics.labels import labeled_samples
from lightning_guide.utils.devices import to_device

__all__ = ["LpipsDiversity"]


class LpipsDiversity(SampleMetric):
    r"""LPIPS diversity `lpips_diversity`: mean LPIPS over all pairs of a class, then over classes; higher is better.

    As LPIPS(x, y) = |g(x) - g(y)|^2 (`LpipsFeatures`), the mean over the pairs of n samples is
    2 / (n - 1) (sum |g|^2 - |sum g|^2 / n): exact, of one network call for each sample, from sums. It takes D
    numbers of 8 bytes for each class: AlexNet at 64 pixels 255 kB, at 256 pixels 5 MB. As a measure of diversity: Zhu
    et al. 2017, https://arxiv.org/abs/1711.11586, who average over some random pairs.
    """

    reads_data = False
    least = 2
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, extractor: LpipsFeatures, *, num_classes: int = 1) -> None:
        """Choose the network; with `num_classes` 1 all samples are one class, whatever their labels.

        Raises:
            ValueError: unless there is a class.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"LpipsDiversity needs num_classes >= 1, got {num_classes}")
        self.extractor, self.num_classes = extractor, num_classes
        self._declare(0)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Read the size of images from the first real example.

        Raises:
            ValueError: if there is no example.
        """
        first = next(iter(reference), None)
        if first is None:
            raise ValueError("LpipsDiversity needs at least one real example to determine the size of images")
        self._declare(self.extractor(first.x[:1].to(self.device)).shape[1])

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add images `x` uint8 (B, C, H, W) with labels `condition` (B,); of several classes, -1 is left out.

        Raises:
            ValueError: if `prepare` was not called, or a label is not below the number of classes.
        """
        self._check_prepared(self.total.numel() > 0)
        if self.num_classes == 1:
            condition = torch.zeros(len(x), dtype=torch.int64)
        if condition is None:
            return
        has = f"LpipsDiversity has {self.num_classes} classes"
        x, labels, _ = labeled_samples(x, condition, device=self.device, limit=self.num_classes, what=has)
        if not len(labels):
            return
        rows, labels = self.extractor(x).to(torch.float64), to_device(labels, self.device)
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self.total.index_add_(0, labels, rows)
        self.squares.index_add_(0, labels, rows.square().sum(1))

    def compute(self) -> dict[str, Tensor]:
        """Return `lpips_diversity`, over the classes with two samples or more; NaN without one."""
        several = self.count > 1
        n = self.count[several]
        spread = self.squares[several] - self.total[several].square().sum(1) / n
        return {"lpips_diversity": (2 * spread / (n - 1)).mean()}

    def _declare(self, width: int) -> None:
        self.add_sum("count", self.num_classes)
        self.add_sum("total", self.num_classes, width)
        self.add_sum("squares", self.num_classes)
