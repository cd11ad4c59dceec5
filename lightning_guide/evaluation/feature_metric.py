"""The base of metrics that need the features of all samples at once, next to those of (a subset of) the real data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.feature_cache import FeatureCache
from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.metric import SampleMetric
from lightning_guide.processes import added, rank_and_world

__all__ = ["FeatureMetric"]


class FeatureMetric(SampleMetric):
    """Holds all features (N, F) of the generated samples until `compute`, in the end on every process."""

    least = 1
    """Fewest samples, and fewest real examples, that a result can be made of."""

    features: list[Tensor]
    reference: Tensor

    def __init__(self, extractor: FeatureExtractor, *, max_reference: int, cache: str | None = None) -> None:
        """Of more than `max_reference` real examples a random subset is used, always the same one.

        `cache`: a folder that keeps the features of the real data (`FeatureCache`); None computes them in every run.

        Raises:
            ValueError: if that is fewer than the metric needs.
        """
        super().__init__()
        if max_reference < self.least:
            raise ValueError(f"{type(self).__name__} needs max_reference >= {self.least}, got {max_reference}")
        self.extractor, self.max_reference, self.cache = extractor, max_reference, cache
        self.register_buffer("reference", torch.empty(0, 0), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Features of (a subset of) the real data.

        Every process has to call this with the same `reference`.

        Raises:
            ValueError: if there are too few examples.
        """
        if self.cache is None:
            found = self._features(reference)
        else:
            cache = FeatureCache(self.cache, self.max_reference)
            found = cache.get(self.extractor, reference, lambda: self._features(reference))
        self._check_count(len(found), "real examples")
        self.reference = found.to(self.device)
        self.add_rows("features", self.reference.shape[1])

    def _features(self, reference: Iterable[Batch]) -> Tensor:
        """Features (N, F) of the examples with the smallest of random keys, in one pass over the data.

        Each process extracts those of its share of the batches. The extractor sees only what belongs to the subset so
        far: of N examples about max_reference (1 + ln(N / max_reference)).
        """
        generator = torch.Generator().manual_seed(0)
        rank, world = rank_and_world()
        keys, chosen, begin = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64), 0
        own, numbers = torch.empty(0, 0, device=self.device), chosen
        for turn, batch in enumerate(reference):
            keys = torch.cat([keys, torch.rand(len(batch.x), generator=generator, dtype=torch.float64)])
            chosen = torch.cat([chosen, torch.arange(begin, begin + len(batch.x))])
            best = keys.topk(min(self.max_reference, len(keys)), largest=False).indices.sort().values
            keys, chosen = keys[best], chosen[best]
            fresh = chosen[chosen >= begin]
            rows, begin = (fresh - begin).to(batch.x.device), begin + len(batch.x)
            if turn == 0 or (len(fresh) and turn % world == rank):  # the first is seen by all, to know the width
                features = self.extractor(batch.x[rows].to(self.device))
                if turn == 0:
                    own = features[:0]
                if turn % world == rank:
                    kept = torch.isin(numbers, chosen)
                    own, numbers = torch.cat([own[kept.to(own.device)], features]), torch.cat([numbers[kept], fresh])
        kept = torch.isin(numbers, chosen)
        found = own.new_zeros(len(chosen), own.shape[1])
        found[torch.searchsorted(chosen, numbers[kept]).to(found.device)] = own[kept.to(own.device)]
        return added(found)

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
