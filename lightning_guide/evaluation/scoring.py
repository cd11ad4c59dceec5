"""Metrics of sets of samples from their features, the noise of sampling, and differences of sets (`Scorer`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_guide.data import Batch
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
from lightning_guide.evaluation.metrics.base import FeatureMetric, SampleMetric
from lightning_guide.evaluation.reference.statistics import Statistics
from lightning_guide.evaluation.set_features import Extracted, Output
from lightning_guide.utils.distributed import all_gather_objects, rank_and_world, run_on_all_ranks

__all__ = ["METRICS", "NEEDS", "WITHOUT_REFERENCE", "Estimate", "MetricName", "Scorer", "Scores", "of_examples"]

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
QUANTILE = 1.959964  # of the normal distribution, for 95 %
ROWS = 4096  # moved to a metric at once


@dataclass(frozen=True)
class Estimate:
    """Value of a metric and half the width of its 95 % interval; None without resampling."""

    value: float
    margin: float | None


def of_examples(name: MetricName) -> bool:
    """Return whether a metric needs the examples of the reference, not only their mean and covariance."""
    return name != "fd" and name not in WITHOUT_REFERENCE


class Scorer:
    """Metrics of features against one reference, with the noise of a finite number of samples.

    The noise is the standard deviation s of a metric over random halves of the samples, drawn without replacement (the
    delete-half jackknife). For a mean it is its standard error: means of n / 2 out of n have the variance
    sigma^2 / (n / 2) (1 - 1 / 2). Unlike sets drawn with replacement, halves hold no sample twice, which would be its
    own nearest neighbor and put k(x, x) into kernel distances. The interval is value ± 1.96 s. It covers neither the
    bias of a metric of few samples, nor the choice of the reference, nor the variation between training runs.
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
                generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
                half = torch.randperm(len(rows), generator=generator)[: len(rows) // 2]
                drawn[number] = _measure(alone, rows[half.to(rows.device)])

        run_on_all_ranks(draw_share)
        together = {number: found for each in all_gather_objects(drawn) for number, found in each.items()}
        return Scores(values, [together[number] for number in range(self.resamples)])


@dataclass(frozen=True)
class Scores:
    """Metrics of one set, and those of halves of it."""

    values: dict[str, float]
    halves: list[dict[str, float]]

    def estimates(self) -> dict[str, Estimate]:
        """Return each metric with its interval."""
        return {
            name: Estimate(value, _margin([half[name] for half in self.halves])) for name, value in self.values.items()
        }

    def minus(self, other: Scores) -> dict[str, Estimate]:
        """Return the difference from `other` of each metric with its interval: paired if both drew equal halves."""
        return {
            name: Estimate(
                value - other.values[name],
                _margin([a[name] - b[name] for a, b in zip(self.halves, other.halves, strict=True)]),
            )
            for name, value in self.values.items()
        }


def _margin(values: Sequence[float]) -> float | None:
    return QUANTILE * torch.tensor(values, dtype=torch.float64).std().item() if values else None


def _measure(metrics: Sequence[SampleMetric], rows: Tensor) -> dict[str, float]:
    """Return all results of `rows` on this process alone."""
    found: dict[str, float] = {}
    for metric in metrics:
        metric.reset()
        for part in rows.split(ROWS):
            metric.update(part)
        found |= {key: float(value) for key, value in metric.compute().items()}
    return found
