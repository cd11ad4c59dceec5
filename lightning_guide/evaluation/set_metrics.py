"""Metrics of the samples of a set themselves, rather than of their features: perceptual diversity, prompts, rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.set_features import PartedSet
from lightning_guide.utils.distributed import rank_and_world, run_on_all_ranks

__all__ = ["LabeledSet", "measure_set", "unfit"]


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


def measure_set(
    metrics: Sequence[SampleMetric],
    samples: LabeledSet,
    *,
    device: torch.device,
    batch_size: int,
    done: Callable[[int], None],
) -> dict[str, float]:
    """Return the results of `metrics` of all samples; each process reads its share of the parts.

    `done` is called with numbers of samples.

    Raises:
        ValueError: as of the metrics.
    """
    rank, world = rank_and_world()
    parts, labels = samples.parts(), samples.labels

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
                for metric in metrics:
                    metric.update(x, label)
            done(len(rows))

    run_on_all_ranks(read_share)  # an error on one of them must not leave the others waiting for the sums
    return {name: float(value) for metric in metrics for name, value in metric.compute_over([metric.totals()]).items()}
