"""Improved precision and recall: the share of samples among the real data, and of real data among the samples.

Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, section 2.

Density and coverage: fidelity and diversity by the same balls around real data alone.

Naeem et al. 2020, https://arxiv.org/abs/2002.09797, equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.base import FeatureMetric

__all__ = ["DensityCoverage", "NeighborBalls", "PrecisionRecall", "coverage", "neighbor_radii"]


def neighbor_radii(features: Tensor, k: int, *, chunk: int = 1024) -> Tensor:
    """Distance (N,) from each of `features` (N, F) to its k-th nearest neighbor, itself not counted.

    Raises:
        ValueError: unless N > k >= 1.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"the {k}-th nearest neighbor needs k >= 1 and more than k features, got {len(features)}")
    rows = [torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(chunk)]
    return torch.cat(rows)


def coverage(points: Tensor, centers: Tensor, radii: Tensor, *, chunk: int = 1024) -> Tensor:
    """Share () of `points` (N, F) within at least one ball of `radii` (M,) around `centers` (M, F), border included."""
    inside = [(torch.cdist(part, centers) <= radii).any(1) for part in points.split(chunk)]
    return torch.cat(inside).to(torch.float64).mean()


class NeighborBalls(FeatureMetric):
    """Base of metrics that count points within balls up to the k-th neighbor.

    Distances cost (samples + reference)^2. Compare results only for equal numbers of samples and equal references.
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
        """Balls reach to the `k`-th neighbor; `chunk` rows of distances are held at a time. Else as `FeatureMetric`.

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
        """Features of (a subset of) the real data and their radii.

        Raises:
            ValueError: if there are not more than k examples.
        """
        super().prepare(reference)
        self.reference_radii = self.radii(self.reference)

    def radii(self, features: Tensor) -> Tensor:
        """Radii (N,), longer by 1e-6 of the reference's spread, so that equal distances are equal despite rounding."""
        rounding = 1e-6 * self.centered(self.reference).square().sum(1).mean().sqrt()
        return neighbor_radii(self.centered(features), self.k, chunk=self.chunk) + rounding

    def centered(self, features: Tensor) -> Tensor:
        """In float64 and around the mean of the reference: distances come from a difference of squares."""
        return features.to(torch.float64) - self.reference.to(torch.float64).mean(0)


class PrecisionRecall(NeighborBalls):
    """`precision` and `recall` of features, with balls up to the k-th neighbor (3 in the paper)."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        k: int = 3,
        max_reference: int = 10_000,
        chunk: int = 1024,
        cache: str | None = None,
    ) -> None:
        """As `NeighborBalls`."""
        super().__init__(extractor, k=k, max_reference=max_reference, chunk=chunk, cache=cache)

    def compute(self) -> dict[str, Tensor]:
        """`precision`: share of samples within a ball of the reference; `recall`: the other way round.

        Raises:
            ValueError: if there are not more than k samples.
        """
        generated = self.generated()
        samples, real = self.centered(generated), self.centered(self.reference)
        return {
            "precision": coverage(samples, real, self.reference_radii, chunk=self.chunk),
            "recall": coverage(real, samples, self.radii(generated), chunk=self.chunk),
        }


class DensityCoverage(NeighborBalls):
    """`density` and `coverage` of features, with balls around the real examples up to their k-th neighbor.

    Borders belong to the balls, as in `PrecisionRecall`. The authors' code leaves them out, which differs where samples
    are copies of real examples: they have density 1 there, (k + 1) / k here.
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
        """As `NeighborBalls`; the paper recommends k = 5 and equal numbers of samples and real examples."""
        super().__init__(extractor, k=k, max_reference=max_reference, chunk=chunk, cache=cache)

    def compute(self) -> dict[str, Tensor]:
        """`density`: mean number of real balls a sample lies in, over k; `coverage`: share of balls with a sample.

        Raises:
            ValueError: if there are not more than k samples.
        """
        samples, real = self.centered(self.generated()), self.centered(self.reference)
        balls = torch.zeros((), dtype=torch.float64, device=samples.device)
        hit = torch.zeros(len(real), dtype=torch.bool, device=samples.device)
        for part in samples.split(self.chunk):
            inside = torch.cdist(part, real) <= self.reference_radii
            balls += inside.sum()
            hit |= inside.any(0)
        return {"density": balls / (self.k * len(samples)), "coverage": hit.to(torch.float64).mean()}
