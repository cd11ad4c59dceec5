"""Improved precision and recall: the share of samples among the real data, and of real data among the samples.

Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.metric import SampleMetric

__all__ = ["PrecisionRecall", "coverage", "neighbour_radii"]


def neighbour_radii(features: Tensor, k: int, *, chunk: int = 1024) -> Tensor:
    """Distance (N,) from each of `features` (N, F) to its k-th nearest neighbour, itself not counted.

    Raises:
        ValueError: unless N > k >= 1.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"the {k}-th nearest neighbour needs k >= 1 and more than k features, got {len(features)}")
    rows = [torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(chunk)]
    return torch.cat(rows)


def coverage(points: Tensor, centres: Tensor, radii: Tensor, *, chunk: int = 1024) -> Tensor:
    """Share () of `points` (N, F) within at least one ball of `radii` (M,) around `centres` (M, F), border included."""
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(chunk)]
    return torch.cat(inside).to(torch.float64).mean()


class PrecisionRecall(SampleMetric):
    """`precision` and `recall` of features, with balls up to the k-th neighbour.

    Needs all features: those of the generated samples are held until `compute`, on every process in the end, and
    distances cost (samples + reference)^2. Compare results only for equal numbers of samples and equal references.
    """

    features: list[Tensor]
    reference: Tensor
    reference_radii: Tensor

    def __init__(
        self, extractor: FeatureExtractor, *, k: int = 3, max_reference: int = 10_000, chunk: int = 1024
    ) -> None:
        """Balls reach to the `k`-th neighbour; `chunk` rows of distances are held at a time.

        Of more than `max_reference` real examples a random subset is used, always the same one.

        Raises:
            ValueError: unless k >= 1, max_reference > k and chunk >= 1.
        """
        super().__init__()
        if not (k >= 1 and max_reference > k and chunk >= 1):
            raise ValueError(
                f"PrecisionRecall needs k >= 1, max_reference > k and chunk >= 1, got {k}, {max_reference} and {chunk}"
            )
        self.extractor = extractor
        self.k, self.max_reference, self.chunk = k, max_reference, chunk
        self.register_buffer("reference", torch.empty(0, 0), persistent=False)
        self.register_buffer("reference_radii", torch.empty(0, dtype=torch.float64), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Features of (a subset of) the real data and their radii.

        Raises:
            ValueError: if there are not more than k examples.
        """
        generator = torch.Generator().manual_seed(0)
        kept, keys = torch.empty(0), torch.empty(0, dtype=torch.float64)
        for batch in reference:
            features = self.extractor(batch.x.to(self.device))
            kept = torch.cat([kept.to(features.device), features]) if len(keys) else features
            keys = torch.cat([keys, torch.rand(len(features), generator=generator, dtype=torch.float64)])
            if len(keys) > self.max_reference:  # the examples with the smallest keys, in their order
                chosen = keys.topk(self.max_reference, largest=False).indices.sort().values
                kept, keys = kept[chosen.to(kept.device)], keys[chosen]
        self._check_count(len(keys), "real examples")
        self.reference = kept
        self.reference_radii = self._radii(kept)
        self.add_rows("features", kept.shape[1])

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds the features of `x` (B, *); labels do not matter.

        Raises:
            ValueError: if `prepare` is still to be called.
        """
        self._check_prepared(len(self.reference) > 0)
        self.features.append(self.extractor(x.to(self.device)))

    def compute(self) -> dict[str, Tensor]:
        """`precision`: share of samples within a ball of the reference; `recall`: the other way round.

        Raises:
            ValueError: if there are not more than k samples.
        """
        self._check_prepared(len(self.reference) > 0)
        generated = self.rows("features")
        self._check_count(len(generated), "samples")
        samples, real = self._centred(generated), self._centred(self.reference)
        return {
            "precision": coverage(samples, real, self.reference_radii, chunk=self.chunk),
            "recall": coverage(real, samples, self._radii(generated), chunk=self.chunk),
        }

    def _radii(self, features: Tensor) -> Tensor:
        """Radii, longer by 1e-6 of the reference's spread, so that equal distances are equal in spite of rounding."""
        rounding = 1e-6 * self._centred(self.reference).square().sum(1).mean().sqrt()
        return neighbour_radii(self._centred(features), self.k, chunk=self.chunk) + rounding

    def _centred(self, features: Tensor) -> Tensor:
        """In float64 and around the mean of the reference: distances come from a difference of squares."""
        return features.to(torch.float64) - self.reference.to(torch.float64).mean(0)

    def _check_count(self, count: int, what: str) -> None:
        if count <= self.k:
            raise ValueError(f"precision and recall with k={self.k} need more than {self.k} {what}, got {count}")
