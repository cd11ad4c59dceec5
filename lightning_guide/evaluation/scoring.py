"""Metrics of sets of samples from their features, the noise of sampling, and differences of sets (`Scorer`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.intervals import Estimate, estimate
from lightning_guide.evaluation.metrics import (
    CMMD,
    MIND,
    SFID,
    Authenticity,
    DensityCoverage,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Memorization,
    PrecisionRecall,
    VendiScore,
)
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.metrics.features import FeatureMetric
from lightning_guide.evaluation.reference.statistics import Statistics
from lightning_guide.evaluation.set_features import Extracted, Output
from lightning_guide.utils.distributed import all_gather_objects, rank_and_world, run_on_all_ranks

__all__ = ["METRICS", "NEEDS", "WITHOUT_REFERENCE", "MetricName", "Scorer", "Scores", "of_examples", "score_means"]

MetricName = Literal[
    "fd", "sfid", "kid", "cmmd", "mind", "precision_recall", "density_coverage", "memorization", "authenticity",
    "vendi", "inception_score",
]  # fmt: skip
METRICS: dict[MetricName, Callable[[Extracted], SampleMetric]] = {
    "fd": FrechetDistance,
    "sfid": SFID,
    "kid": KernelDistance,
    "cmmd": CMMD,
    "mind": MIND,
    "precision_recall": PrecisionRecall,
    "density_coverage": DensityCoverage,
    "memorization": Memorization,
    "authenticity": Authenticity,
    "vendi": VendiScore,
    "inception_score": InceptionScore,
}
NEEDS: dict[MetricName, Output] = {"sfid": "spatial", "inception_score": "logits"}
WITHOUT_REFERENCE: tuple[MetricName, ...] = ("vendi", "inception_score")
ROWS = 4096  # moved to a metric at once


def of_examples(name: MetricName) -> bool:
    """Return whether a metric needs the examples of the reference, not only their mean and covariance."""
    return name != "fd" and name not in WITHOUT_REFERENCE


class Scorer:
    """Metrics of features against one reference, with the noise of a finite number of samples.

    The noise is the standard deviation s of a metric over random halves of the samples, drawn without replacement (the
    delete-half jackknife). For a mean it is its standard error: means of n / 2 out of n have the variance
    sigma^2 / (n / 2) (1 - 1 / 2). Unlike sets drawn with replacement, halves hold no sample twice, which would be its
    own nearest neighbor and put k(x, x) into kernel distances. The intervals, by `estimate`, cover neither the bias of
    a metric of few samples, nor the choice of the reference, nor the variation between training runs.
    """

    def __init__(
        self,
        names: Sequence[MetricName],
        reference: Tensor | Statistics,
        *,
        width: int,
        places: int = 0,
        resamples: int,
        device: torch.device,
    ) -> None:
        """Prepare the metrics `names`; `resamples` is the number of halves, 0 for none.

        `reference` holds `width` features and `places` spatial ones (N, F + S), or the mean and covariance of the
        features, which suffice unless a metric is one `of_examples`.

        Raises:
            ValueError: if statistics have another width, or there are too few examples.
        """
        self.resamples, self.device = resamples, device
        self.metrics: dict[str, SampleMetric] = {}
        for name in names:
            metric = METRICS[name](Extracted(width, places)).to(device)
            batches = [Batch(x.to(device)) for x in reference.split(ROWS)] if isinstance(reference, Tensor) else []
            if isinstance(metric, FrechetDistance):
                fitted = reference if isinstance(reference, Statistics) else metric.fit(batches)
                if isinstance(reference, Statistics) and len(fitted.mean) != width:
                    raise ValueError(f"the statistics are those of {len(fitted.mean)} features, expected {width}")
                metric.use(replace(fitted, data_shape=None))  # rows may end in logits
            elif isinstance(metric, FeatureMetric):
                assert batches, f"{name} is one of examples"
                metric.prepare(batches)
            self.metrics[name] = metric

    def score(self, rows: Tensor, seed: int = 0) -> Scores:
        """Return the metrics of features and logits `rows` (N, F + K); every process has to call this.

        Equal seeds draw equal halves, of sets of equal size.

        Raises:
            ValueError: if there are too few samples.
        """
        rank, world = rank_and_world()
        rows = rows.to(self.device)
        for name in WITHOUT_REFERENCE:
            if name in self.metrics:
                self.metrics[name].prepare([Batch(rows[:1])])  # the number of classes or features
        alone = [metric.alone() for metric in self.metrics.values()]
        values = _measure(alone, rows)
        drawn: dict[int, dict[str, float]] = {}

        def draw_share() -> None:
            for number in range(rank, self.resamples, world):
                drawn[number] = _measure(alone, rows[_half(len(rows), seed, number).to(rows.device)])

        run_on_all_ranks(draw_share)
        together = {number: found for each in all_gather_objects(drawn) for number, found in each.items()}
        return Scores(values, [together[number] for number in range(self.resamples)])


@dataclass(frozen=True)
class Scores:
    """Metrics of one set, and those of halves of it."""

    values: dict[str, float]
    halves: list[dict[str, float]]

    def estimates(self) -> dict[str, Estimate]:
        """Return each metric with its interval, without one where halves have no value."""
        return {name: estimate(name, value, self._of_halves(name)) for name, value in self.values.items()}

    def minus(self, other: Scores) -> dict[str, Estimate]:
        """Return the difference from `other` of each metric with its interval: paired if both drew equal halves."""
        found = {}
        for name, value in self.values.items():
            both = zip(self._of_halves(name), other._of_halves(name), strict=True)
            found[name] = estimate("", value - other.values[name], [a - b for a, b in both])
        return found

    def joined(self, other: Scores) -> Scores:
        """Return these metrics and those of `other`, of the same halves; `other` may have fewer of halves."""
        halves = [a | b for a, b in zip(self.halves, other.halves, strict=True)]
        return Scores(self.values | other.values, halves)

    def _of_halves(self, name: str) -> list[float]:
        return [half[name] for half in self.halves if name in half]


def score_means(values: Mapping[str, Tensor], *, resamples: int, seed: int) -> Scores:
    """Return the means of `values` by name, (N, 2): number and 1 of each sample that has one, else 0 and 0.

    Halves are those that `Scorer` draws under this seed.
    """
    halves = []
    for number in range(resamples):
        halves.append({name: _mean(each[_half(len(each), seed, number)]) for name, each in values.items()})
    return Scores({name: _mean(each) for name, each in values.items()}, halves)


def _mean(values: Tensor) -> float:
    total, count = values.sum(0)
    return float(total / count)


def _half(count: int, seed: int, number: int) -> Tensor:
    """Return the numbers of a random half of `count` samples."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randperm(count, generator=generator)[: count // 2]


def _measure(metrics: Sequence[SampleMetric], rows: Tensor) -> dict[str, float]:
    """Return all results of `rows` on this process alone."""
    found: dict[str, float] = {}
    for metric in metrics:
        metric.reset()
        for part in rows.split(ROWS):
            metric.update(part)
        found |= {key: float(value) for key, value in metric.compute().items()}
    return found
