"""The contract of metrics that judge generated samples against real data, exact over any number of processes.

The base of metrics that need the features of all samples at once, next to those of (a subset of) the real data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torchmetrics
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.features.identity import Identity
from lightning_guide.evaluation.reference.cache import FeatureCache
from lightning_guide.utils.distributed import all_reduce_sum, rank_and_world

__all__ = ["FeatureMetric", "SampleMetric"]


class SampleMetric(torchmetrics.Metric, ABC):
    """Base of metrics of generated samples.

    One life: `prepare` once, `clone` for each named evaluation, then `reset`, `update` with batches, `compute`, any
    number of times; `to` moves everything at any moment. What `prepare` found out is kept in buffers, the same on
    every process; what `update` adds up is kept in states (`add_sum`, `add_rows`), which `compute` first combines
    over all processes. Processes may hold different numbers of samples, also none.

    Held outside of a LightningModule's module tree, so that no metric enters a checkpoint, an optimizer or DDP.
    """

    full_state_update = False

    def __init__(self) -> None:
        """No options: `compute` combines all processes and remembers its result until the next `update`."""
        super().__init__()
        self._widths: dict[str, int] = {}

    @abstractmethod
    def prepare(self, reference: Iterable[Batch]) -> None:
        """Takes in the real data, in stored form (uint8 images or float points), the same on every process.

        Raises:
            ValueError: if the data do not suffice.
        """

    @abstractmethod
    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds generated samples `x` (B, *) in stored form and their labels `condition` (B,), -1 or None = no label.

        Raises:
            ValueError: if `prepare` is still to be called.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Scalars by name, over all samples of all processes since the last `reset`.

        Raises:
            ValueError: if there are too few samples.
        """

    @property
    def extractors(self) -> list[Identity]:
        """Which networks it sees the samples through: results under others do not compare.

        Raises:
            ValueError: if the weights of one cannot be found.
        """
        return [module.identity for module in self.children() if isinstance(module, FeatureExtractor)]

    def add_sum(self, name: str, *shape: int) -> None:
        """Declares the state `name`: float64 zeros of `shape`, summed over processes."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64, device=self.device), dist_reduce_fx="sum")

    def add_rows(self, name: str, width: int) -> None:
        """Declares the state `name`: a list of float32 tensors (n, width); `rows` gives all of them in one."""
        self._widths[name] = width
        self.add_state(name, [], dist_reduce_fx="cat")

    def rows(self, name: str) -> Tensor:
        """All rows (N, width) of the state `name`; N may be 0."""
        state = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else state
        return torch.cat([self._no_rows(name), *parts])

    def totals(self) -> dict[str, Tensor]:
        """What `update` has added up since the last `reset`, over all processes: sums and rows (N, width) by state.

        Every process has to call this.
        """
        with self.sync_context():
            sums = {name: getattr(self, name) + 0 for name in self._defaults if name not in self._widths}
            return sums | {name: self.rows(name) for name in self._widths}

    def compute_over(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """`compute` of the union of `parts`, each the `totals` of some samples; on this process alone.

        Raises:
            ValueError: if there are too few samples.
        """
        union = cast(SampleMetric, self.clone())
        union.reset()
        union._to_sync, union._update_count = False, 1
        for name in self._defaults:
            several = [part[name].to(self.device) for part in parts]
            setattr(union, name, several if name in self._widths else torch.stack(several).sum(0))
        return cast(dict[str, Tensor], union.compute())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Combines the states of all processes.

        A list that is still empty first gets a tensor of no rows. Otherwise torchmetrics would gather a tensor
        without the second axis in its place, and processes would wait for different shapes.
        """
        for name in self._widths:
            if isinstance(state := getattr(self, name), list) and not state:
                state.append(self._no_rows(name))
        super().sync(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> SampleMetric:
        """As `nn.Module.to`; a metric stays on the CPU instead of on a device without float64 (mps)."""
        wanted = kwargs.get("device", args[0] if args else None)
        moved = self.cpu() if str(wanted).startswith("mps") else super().to(*args, **kwargs)
        return cast(SampleMetric, moved)

    def _no_rows(self, name: str) -> Tensor:
        return torch.empty(0, self._widths[name], device=self.device)

    def _check_prepared(self, ready: bool) -> None:
        """Raises ValueError unless `ready`."""
        if not ready:
            raise ValueError(f"{type(self).__name__} has seen no real data yet; call prepare(reference) before update")


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
        return all_reduce_sum(found)

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
