"""The contract of metrics that judge generated samples against real data, exact over any number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torchmetrics
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.identity import Identity

__all__ = ["SampleMetric"]


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
