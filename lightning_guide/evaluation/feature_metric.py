"""The base of metrics that need the features of all samples at once, next to those of (a subset of) the real data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.metric import SampleMetric

__all__ = ["FeatureMetric"]


class FeatureMetric(SampleMetric):
    """Holds all features (N, F) of the generated samples until `compute`, in the end on every process."""

    least = 1
    """Fewest samples, and fewest real examples, that a result can be made of."""

    features: list[Tensor]
    reference: Tensor

    def __init__(self, extractor: FeatureExtractor, *, max_reference: int) -> None:
        """Of more than `max_reference` real examples a random subset is used, always the same one.

        Raises:
            ValueError: if that is fewer than the metric needs.
        """
        super().__init__()
        if max_reference < self.least:
            raise ValueError(f"{type(self).__name__} needs max_reference >= {self.least}, got {max_reference}")
        self.extractor, self.max_reference = extractor, max_reference
        self.register_buffer("reference", torch.empty(0, 0), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Features of (a subset of) the real data.

        The subset are the examples with the smallest of random keys. The extractor sees only those that belong to it so
        far: of N examples about max_reference (1 + ln(N / max_reference)).

        Raises:
            ValueError: if there are too few examples.
        """
        generator = torch.Generator().manual_seed(0)
        kept, keys = torch.empty(0, 0, device=self.device), torch.empty(0, dtype=torch.float64)
        for batch in reference:
            new = torch.cat([keys, torch.rand(len(batch.x), generator=generator, dtype=torch.float64)])
            chosen = new.topk(min(self.max_reference, len(new)), largest=False).indices.sort().values
            old, fresh = chosen[chosen < len(keys)], chosen[chosen >= len(keys)] - len(keys)
            if len(fresh):
                features = self.extractor(batch.x[fresh.to(batch.x.device)].to(self.device))
                kept = torch.cat([kept[old.to(kept.device)], features]) if len(old) else features
            keys = new[chosen]
        self._check_count(len(keys), "real examples")
        self.reference = kept
        self.add_rows("features", kept.shape[1])

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds the features of `x` (B, *); labels do not matter.

        Raises:
            ValueError: if `prepare` is still to be called.
        """
        self._check_prepared(len(self.reference) > 0)
        self.features.append(self.extractor(x.to(self.device)))

    def generated(self) -> Tensor:
        """Features (N, F) of all samples of all processes.

        Raises:
            ValueError: if `prepare` is still to be called, or there are too few samples.
        """
        self._check_prepared(len(self.reference) > 0)
        rows = self.rows("features")
        self._check_count(len(rows), "samples")
        return rows

    def _check_count(self, count: int, what: str) -> None:
        if count < self.least:
            raise ValueError(f"{type(self).__name__} needs at least {self.least} {what}, got {count}")
