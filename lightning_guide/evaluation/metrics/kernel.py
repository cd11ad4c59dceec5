"""Kernel distances KID and CMMD: squared maximum mean discrepancy (MMD) between real and generated features.

With x, x' generated, y, y' real and a kernel k: MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) (Gretton et al. 2012).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.features import FeatureMetric

__all__ = ["CMMD", "KernelDistance", "MeanDiscrepancy"]


class MeanDiscrepancy(FeatureMetric):
    """Base of kernel distances: MMD^2 in float64 over all pairs, by `chunk` rows of the kernel matrix."""

    least = 2
    reference_within: Tensor

    def __init__(
        self, extractor: FeatureExtractor, *, max_reference: int = 10_000, chunk: int = 1024, cache: str | None = None
    ) -> None:
        """Take the arguments of `FeatureMetric` and the number of rows at a time, `chunk`."""
        super().__init__(extractor, max_reference=max_reference, cache=cache)
        self.chunk = chunk
        self.register_buffer("reference_within", torch.empty((), dtype=torch.float64), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Extract the features of (a subset of) the real data and compute the mean kernel among them.

        Raises:
            ValueError: if there are too few examples.
        """
        super().prepare(reference)
        self.reference_within = self.within(self.reference)

    def compute_mmd(self) -> Tensor:
        """Return MMD^2 of the samples to the reference.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        samples = self.generated()
        return self.within(samples) + self.reference_within - 2 * self.mean_kernel(samples, self.reference)

    @abstractmethod
    def within(self, a: Tensor) -> Tensor:
        """Return the mean kernel among the rows of `a` (N, F)."""

    @abstractmethod
    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Return k (N, M) between rows of `a` (N, F) and `b` (M, F)."""

    def mean_kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean of k over all pairs of rows of `a` and of `b`."""
        a, b = a.to(torch.float64), b.to(torch.float64)
        sums = torch.stack([self.kernel(part, b).sum() for part in a.split(self.chunk)])
        return sums.sum() / (len(a) * len(b))

    def mean_kernel_distinct(self, a: Tensor) -> Tensor:
        """Return the mean of k over all pairs of different rows of `a` (N, F), which is unbiased."""
        diagonal = torch.cat([self.kernel(row[None], row[None])[0] for row in a.to(torch.float64)]).mean()
        return (self.mean_kernel(a, a) * len(a) - diagonal) / (len(a) - 1)


class KernelDistance(MeanDiscrepancy):
    r"""Kernel inception distance (KID): unbiased MMD^2 with the kernel k(x, y) = (x . y / F + 1)^3.

    Binkowski et al. 2018, https://arxiv.org/abs/1801.01401. The paper averages over random subsets of 1000. Here all
    pairs are used, with the same mean, less variance and no random draws. The value may be negative.
    """

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (a . b / F + 1)^3."""
        return (a @ b.mT / a.shape[1] + 1) ** 3

    def within(self, a: Tensor) -> Tensor:
        """Return the mean over pairs of different rows."""
        return self.mean_kernel_distinct(a)

    def compute(self) -> dict[str, Tensor]:
        """Return `kid`; published tables often show 1000 times the value.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        return {"kid": self.compute_mmd()}


class CMMD(MeanDiscrepancy):
    r"""CLIP MMD (CMMD): 1000 MMD^2 of unit-length embeddings with the kernel exp(-|x - y|^2 / (2 s^2)), s = 10.

    Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603, with CLIP ViT-L/14 at 336 pixels as extractor. Features
    are normalized here. Pairs of equal samples are included.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        bandwidth: float = 10.0,
        max_reference: int = 10_000,
        chunk: int = 1024,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `MeanDiscrepancy` and the `bandwidth` s of the kernel.

        Raises:
            ValueError: unless `bandwidth` is positive.
        """
        super().__init__(extractor, max_reference=max_reference, chunk=chunk, cache=cache)
        if not bandwidth > 0:
            raise ValueError(f"CMMD needs a positive bandwidth, got {bandwidth}")
        self.bandwidth = bandwidth

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Return exp(-|a - b|^2 / (2 s^2)) of normalized rows."""
        a, b = (t / t.norm(dim=1, keepdim=True).clamp(min=1e-12) for t in (a, b))
        return ((a @ b.mT - 1) / self.bandwidth**2).exp()

    def within(self, a: Tensor) -> Tensor:
        """Return the mean over all pairs."""
        return self.mean_kernel(a, a)

    def compute(self) -> dict[str, Tensor]:
        """Return `cmmd`.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        return {"cmmd": 1000 * self.compute_mmd()}
