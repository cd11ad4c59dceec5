"""Improved precision and recall, and density and coverage, from nearest-neighbor balls of features.

Precision and recall: Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, section 2. Density and coverage: Naeem
et al. 2020, https://arxiv.org/abs/2002.09797, equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.features import FeatureMetric

__all__ = ["DensityCoverage", "NeighborBalls", "PrecisionRecall", "coverage", "neighbor_radii"]


def neighbor_radii(features: Tensor, k: int, *, chunk: int = 1024) -> Tensor:
    """Return the distance (N,) from each of `features` (N, F) to its k-th nearest neighbor, excluding itself.

    Raises:
        ValueError: unless N > k >= 1.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"the {k}-th nearest neighbor needs k >= 1 and more than k features, got {len(features)}")
    rows = [torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(chunk)]
    return torch.cat(rows)


def coverage(points: Tensor, centers: Tensor, radii: Tensor, *, chunk: int = 1024) -> Tensor:
    """Return the share () of `points` (N, F) in any ball of `radii` (M,) around `centers` (M, F), border included."""
    inside = [(torch.cdist(part, centers) <= radii).any(1) for part in points.split(chunk)]
    return torch.cat(inside).to(torch.float64).mean()


class NeighborBalls(FeatureMetric):
    """Base of metrics that count points in balls up to the k-th neighbor.

    The cost is (samples + reference)^2 distances. Compare results only for equal numbers of samples and equal
    references.
    """

    reference_radii: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        k: int,
        max_reference: int = 10_000,
        chunk: int = 1024,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `FeatureMetric`, the neighbor `k`, and the number of rows at a time, `chunk`.

        Raises:
            ValueError: unless k >= 1, max_reference > k and chunk >= 1.
        """
        if not (k >= 1 and max_reference > k and chunk >= 1):
            raise ValueError(
                f"{type(self).__name__} needs k >= 1, max_reference > k and chunk >= 1, "
                f"got {k}, {max_reference} and {chunk}"
            )
        super().__init__(extractor, max_reference=max_reference, cache=cache)
        self.k, self.chunk = k, chunk
        self.least = k + 1
        self.register_buffer("reference_radii", torch.empty(0, dtype=torch.float64), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Extract the features of (a subset of) the real data and compute their radii.

        Raises:
            ValueError: if there are at most k examples.
        """
        super().prepare(reference)
        self.reference_radii = self.radii(self.reference)

    def radii(self, features: Tensor) -> Tensor:
        """Return radii (N,), enlarged by 1e-6 of the reference's spread against rounding of equal distances."""
        rounding = 1e-6 * self.centered(self.reference).square().sum(1).mean().sqrt()
        return neighbor_radii(self.centered(features), self.k, chunk=self.chunk) + rounding

    def centered(self, features: Tensor) -> Tensor:
        """Return `features` in float64, centered on the reference: distances come from a difference of squares."""
        return features.to(torch.float64) - self.reference.to(torch.float64).mean(0)


class PrecisionRecall(NeighborBalls):
    """Improved precision and recall of features, with balls up to the k-th neighbor (3 in the paper)."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        k: int = 3,
        max_reference: int = 10_000,
        chunk: int = 1024,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `NeighborBalls`."""
        super().__init__(extractor, k=k, max_reference=max_reference, chunk=chunk, cache=cache)

    def compute(self) -> dict[str, Tensor]:
        """Return `precision`, the share of samples in a ball of the reference, and `recall`, the reverse.

        Raises:
            ValueError: if there are at most k samples.
        """
        generated = self.generated()
        samples, real = self.centered(generated), self.centered(self.reference)
        return {
            "precision": coverage(samples, real, self.reference_radii, chunk=self.chunk),
            "recall": coverage(real, samples, self.radii(generated), chunk=self.chunk),
        }


class DensityCoverage(NeighborBalls):
    """Density and coverage of features, with balls around the real examples up to their k-th neighbor.

    Balls include their border, as in `PrecisionRecall`. The authors' code excludes it, which differs if samples are
    copies of real examples: they have density 1 there, (k + 1) / k here.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        k: int = 5,
        max_reference: int = 10_000,
        chunk: int = 1024,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `NeighborBalls`; the paper uses k = 5 and as many samples as real examples."""
        super().__init__(extractor, k=k, max_reference=max_reference, chunk=chunk, cache=cache)

    def compute(self) -> dict[str, Tensor]:
        """Return `density`, mean number of real balls around a sample over k, and `coverage`, share of balls with one.

        Raises:
            ValueError: if there are at most k samples.
        """
        samples, real = self.centered(self.generated()), self.centered(self.reference)
        balls = torch.zeros((), dtype=torch.float64, device=samples.device)
        hit = torch.zeros(len(real), dtype=torch.bool, device=samples.device)
        for part in samples.split(self.chunk):
            inside = torch.cdist(part, real) <= self.reference_radii
            balls += inside.sum()
            hit |= inside.any(0)
        return {"density": balls / (self.k * len(samples)), "coverage": hit.to(torch.float64).mean()}
