"""Base of metrics of all features at once, of samples and of real data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.reference.cache import FeatureCache
from lightning_guide.utils.distributed import all_reduce_sum, rank_and_world, run_on_all_ranks

__all__ = ["FeatureMetric"]


class FeatureMetric(SampleMetric):
    """Base of metrics of all features (N, F) at once: of generated samples and of (a subset of) the real data.

    The features are held until `compute`, which gathers them on every process.
    """

    features: list[Tensor]
    reference: Tensor

    def __init__(self, extractor: FeatureExtractor, *, max_reference: int, cache: str | None = None) -> None:
        """Choose extractor and reference.

        Args:
            extractor: of the features.
            max_reference: of more real examples a random subset is used, always the same one.
            cache: folder that stores the features of the real data (`FeatureCache`); None computes them in every run.

        Raises:
            ValueError: if `max_reference` is below the least number of examples.
        """
        super().__init__()
        if max_reference < self.least:
            raise ValueError(f"{type(self).__name__} needs max_reference >= {self.least}, got {max_reference}")
        self.extractor, self.max_reference, self.cache = extractor, max_reference, cache
        self.register_buffer("reference", torch.empty(0, 0), persistent=False)

    def missing(self, sample: Batch | None, count: int, reference: Iterable[Batch]) -> Iterator[str]:
        """Yield what is missing, real examples included."""
        yield from super().missing(sample, count, reference)
        yield from self.too_few(reference, self.least)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Extract the features of (a subset of) the real data.

        Every process has to call this with the same `reference`.

        Raises:
            ValueError: if there are too few examples.
        """
        if self.cache is None:
            features = self._features(reference)
        else:
            cache = FeatureCache(self.cache, self.max_reference)
            features = cache.get(self.extractor, reference, lambda: self._features(reference))
        self._check_count(len(features), "real examples")
        self.reference = features.to(self.device)
        self.add_rows("features", self.reference.shape[1])

    def _features(self, reference: Iterable[Batch]) -> Tensor:
        """Return features (N, F) of the examples with the smallest random keys, in one pass over the data.

        Each process extracts those of its share of the batches, and only those of the subset so far: of N examples
        about max_reference (1 + ln(N / max_reference)).
        """
        generator = torch.Generator().manual_seed(0)
        rank, world = rank_and_world()
        keys, chosen, begin = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64), 0
        own, numbers = torch.empty(0, 0, device=self.device), chosen

        def extract_share() -> None:
            nonlocal keys, chosen, begin, own, numbers
            for turn, batch in enumerate(reference):
                keys = torch.cat([keys, torch.rand(len(batch.x), generator=generator, dtype=torch.float64)])
                chosen = torch.cat([chosen, torch.arange(begin, begin + len(batch.x))])
                smallest = keys.topk(min(self.max_reference, len(keys)), largest=False).indices.sort().values
                keys, chosen = keys[smallest], chosen[smallest]
                added = chosen[chosen >= begin]
                rows, begin = (added - begin).to(batch.x.device), begin + len(batch.x)
                if turn == 0 or (len(added) and turn % world == rank):  # all need the first batch's width
                    features = self.extractor(batch.x[rows].to(self.device))
                    if turn == 0:
                        own = features[:0]
                    if turn % world == rank:
                        kept = torch.isin(numbers, chosen)
                        own, numbers = (
                            torch.cat([own[kept.to(own.device)], features]),
                            torch.cat([numbers[kept], added]),
                        )

        run_on_all_ranks(extract_share)  # an error on one of them must not leave the others waiting for the sum
        kept = torch.isin(numbers, chosen)
        total = own.new_zeros(len(chosen), own.shape[1])
        total[torch.searchsorted(chosen, numbers[kept]).to(total.device)] = own[kept.to(own.device)]
        return all_reduce_sum(total)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add the features of `x` (B, *); labels are ignored.

        Raises:
            ValueError: if `prepare` was not called.
        """
        self._check_prepared(len(self.reference) > 0)
        self.features.append(self.extractor(x.to(self.device)))

    def generated(self) -> Tensor:
        """Return features (N, F) of all samples of all processes.

        Raises:
            ValueError: if `prepare` was not called, or there are too few samples.
        """
        self._check_prepared(len(self.reference) > 0)
        rows = self.rows("features")
        self._check_count(len(rows), "samples")
        return rows

    def _check_count(self, count: int, what: str) -> None:
        if count < self.least:
            raise ValueError(f"{type(self).__name__} needs at least {self.least} {what}, got {count}")
