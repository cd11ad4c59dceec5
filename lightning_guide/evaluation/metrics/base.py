"""Base of metrics of generated samples, exact over any number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torchmetrics
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor, Identity
from lightning_guide.utils.needs import attempt, needs_of

__all__ = ["SampleMetric"]


class SampleMetric(torchmetrics.Metric, ABC):
    """Base of metrics of generated samples.

    Lifecycle: `prepare` once, `clone` for each named evaluation, then `reset`, `update` with batches and `compute`, any
    number of times; `to` moves everything at any moment. Results of `prepare` are buffers, equal on every process.
    Results of `update` are states (`add_sum`, `add_rows`), which `compute` first combines over all processes.
    Processes may hold different numbers of samples, including none.

    Examples:
        >>> from lightning_guide.evaluation import FrechetDistance, RawPixels
        >>> metric = FrechetDistance(RawPixels())
        >>> metric.prepare([Batch(torch.tensor([[0.0], [2.0]]))])  # one batch of two real points, of mean 1
        >>> metric.update(torch.tensor([[3.0], [5.0]]))  # generated points, of mean 4 and equal variance
        >>> {name: round(float(value), 6) for name, value in metric.compute().items()}
        {'fd': 9.0}

    Kept outside of the module tree of a LightningModule, so that no metric is part of a checkpoint, an optimizer or
    DDP.
    """

    full_state_update = False
    least = 1
    """Least number of samples and, if the metric reads them, of real examples."""
    reads_data = True
    """Whether `prepare` reads more than one real example."""

    def __init__(self) -> None:
        """Take no options: `compute` combines all processes and caches its result until the next `update`."""
        super().__init__()
        self._widths: dict[str, int] = {}

    @abstractmethod
    def prepare(self, reference: Iterable[Batch]) -> None:
        """Read the real data, in stored form (uint8 images or float points), the same on every process.

        Raises:
            ValueError: if there are too few data.
        """

    @abstractmethod
    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add generated samples `x` (B, *) in stored form and their labels `condition` (B,); -1 or None: unlabeled.

        Raises:
            ValueError: if `prepare` was not called.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Return scalars by name, over all samples of all processes since the last `reset`.

        Raises:
            ValueError: if there are too few samples.
        """

    @property
    def extractors(self) -> list[Identity]:
        """Identities of the feature extractors; results of different extractors are not comparable.

        Raises:
            ValueError: if the weights of one cannot be found.
        """
        return [module.identity for module in self.children() if isinstance(module, FeatureExtractor)]

    def missing(self, sample: Batch | None, count: int, reference: Iterable[Batch]) -> Iterator[str]:
        """Yield what prevents the metric of `count` samples like `sample`: weights, shapes, labels, too few samples.

        `sample` holds one sample with the largest label drawn, None if none could be drawn. Subclasses that read the
        real data check `reference` as well.
        """
        if count < self.least:
            yield f"{type(self).__name__} needs at least {self.least} samples, got {count}"
        lacking = list(needs_of(*self.children()))
        if not lacking and sample is not None and (error := attempt(lambda: self._try(sample))):
            lacking = [f"{type(self).__name__} cannot be computed: {error}"]
        yield from lacking

    def _try(self, sample: Batch) -> None:
        """Add `sample` to a copy, or at least extract its features."""
        if self.reads_data:
            for part in self.children():
                if isinstance(part, FeatureExtractor):
                    part(sample.x)
        else:
            trial = cast(SampleMetric, self.clone())
            trial.prepare([sample])
            trial.update(*sample)

    def too_few(self, reference: Iterable[Batch], least: int) -> Iterator[str]:
        """Yield a sentence if `reference` has fewer than `least` examples; reads no more than those."""
        found = 0

        def read() -> None:
            nonlocal found
            for batch in reference:
                found += len(batch.x)
                if found >= least:
                    return

        error = attempt(read)
        if error is not None or found < least:
            yield error or f"{type(self).__name__} needs at least {least} real examples, got {found}"

    def add_sum(self, name: str, *shape: int) -> None:
        """Declare the state `name`: float64 zeros of `shape`, summed over processes."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64, device=self.device), dist_reduce_fx="sum")

    def add_rows(self, name: str, width: int) -> None:
        """Declare the state `name`: a list of float32 tensors (n, width), concatenated by `rows`."""
        self._widths[name] = width
        self.add_state(name, [], dist_reduce_fx="cat")

    def rows(self, name: str) -> Tensor:
        """Return all rows (N, width) of the state `name`; N may be 0."""
        state = getattr(self, name)
        return torch.cat([self._no_rows(name), *([state] if isinstance(state, Tensor) else state)])

    def totals(self) -> dict[str, Tensor]:
        """Return sums and rows (N, width) by state, over all processes and all updates since the last `reset`.

        Every process has to call this.
        """
        with self.sync_context():
            sums = {name: getattr(self, name) + 0 for name in self._defaults if name not in self._widths}
            return sums | {name: self.rows(name) for name in self._widths}

    def compute_over(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return `compute` of the union of `parts`, each the `totals` of some samples, on this process only.

        Raises:
            ValueError: if there are too few samples.
        """
        union = self.alone()
        union._update_count = 1
        for name in self._defaults:
            values = [part[name].to(self.device) for part in parts]
            setattr(union, name, values if name in self._widths else torch.stack(values).sum(0))
        return cast(dict[str, Tensor], union.compute())

    def alone(self) -> SampleMetric:
        """Return a prepared copy without samples that computes from those of this process only."""
        copy = cast(SampleMetric, self.clone())
        copy.reset()
        copy._to_sync = False
        return copy

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Combine the states of all processes.

        An empty list first gets a tensor without rows. Otherwise torchmetrics would gather a tensor without the second
        axis in its place, and processes would wait for different shapes.
        """
        for name in self._widths:
            if isinstance(state := getattr(self, name), list) and not state:
                state.append(self._no_rows(name))
        super().sync(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> SampleMetric:
        """Move the metric; it stays on the CPU if the device has no float64 (mps)."""
        device = kwargs.get("device", args[0] if args else None)  # waits for each sum, when an evaluation starts
        return cast(SampleMetric, self.cpu() if str(device).startswith("mps") else super().to(*args, **kwargs))

    def _no_rows(self, name: str) -> Tensor:
        return torch.empty(0, self._widths[name], device=self.device)

    def _check_prepared(self, ready: bool) -> None:
        """Raise ValueError unless `ready`."""
        if not ready:
            raise ValueError(f"{type(self).__name__} is not prepared; call prepare(reference) before update")
