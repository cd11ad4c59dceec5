"""Metrics of the samples of a set themselves, rather than of their features: perceptual diversity, prompts, rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.metrics.mean import MeanMetric
from lightning_guide.evaluation.set_features import PartedSet
from lightning_guide.utils.distributed import all_reduce_sum, rank_and_world, run_on_all_ranks

__all__ = ["LabeledSet", "Measured", "measure_set", "unfit"]


class LabeledSet(PartedSet, Protocol):
    """Samples in files, with labels if there are any."""

    @property
    def labels(self) -> torch.Tensor | None:
        """Labels (N,), -1 for none; None if the files have none."""


def unfit(metrics: Sequence[SampleMetric], samples: PartedSet) -> Iterator[str]:
    """Yield what prevents `metrics` of `samples`: networks or packages, shapes, too few samples, a reference."""
    for metric in metrics:
        if metric.reads_data:
            yield f"{type(metric).__name__} compares with a reference, which `also` does not; name it in `metrics`"
        else:
            yield from metric.missing(Batch(samples.read(range(1))), len(samples), [])


@dataclass(frozen=True)
class Measured:
    """Results of a set: `values` by name, and of means over samples `each` (N, 2), number and 1, or 0 and 0 without."""

    values: dict[str, float]
    each: dict[str, Tensor]


def measure_set(
    metrics: Sequence[SampleMetric],
    samples: LabeledSet,
    *,
    device: torch.device,
    batch_size: int,
    done: Callable[[int], None],
) -> Measured:
    """Return the results of `metrics` of all samples; each process reads its share of the parts.

    `done` is called with numbers of samples.

    Raises:
        ValueError: as of the metrics.
    """
    rank, world = rank_and_world()
    parts, labels = samples.parts(), samples.labels
    means = [metric for metric in metrics if isinstance(metric, MeanMetric)]
    others = [metric for metric in metrics if not isinstance(metric, MeanMetric)]
    each = {metric.key: torch.zeros(len(samples), 2, dtype=torch.float64) for metric in means}

    def read_share() -> None:
        first = Batch(samples.read(range(1)).to(device))
        for metric in metrics:
            metric.to(device)
            metric.prepare([first])
            metric.reset()
        for number in range(rank, len(parts), world):
            part, rows = samples.read(parts[number]), parts[number]
            for begin in range(0, len(part), batch_size):
                x = part[begin : begin + batch_size].to(device)
                label = None if labels is None else labels[rows.start + begin :][: len(x)]
                for metric in others:
                    metric.update(x, label)
                for metric in means:
                    found, chosen = metric.values(x, label)
                    pairs = torch.stack([found.double().cpu(), torch.ones(len(found), dtype=torch.float64)], 1)
                    each[metric.key][rows.start + begin + chosen.cpu()] = pairs
            done(len(rows))

    run_on_all_ranks(read_share)  # an error on one of them must not leave the others waiting for the sums
    values = {name: float(value) for metric in others for name, value in metric.compute_over([metric.totals()]).items()}
    return Measured(values, {name: all_reduce_sum(rows) for name, rows in each.items()})
