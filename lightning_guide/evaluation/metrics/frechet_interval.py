"""Frechet distance with a bootstrap interval and its limit for infinitely many samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.frechet import FrechetDistance, frechet_distance

__all__ = ["FrechetInterval"]


class FrechetInterval(FrechetDistance):
    r"""Frechet distance with an interval and its limit for infinitely many samples; holds all features.

    `NAME_low` and `NAME_high` bound the distance by the pivotal bootstrap over samples, 2 d - q(1 - a/2) and
    2 d - q(a/2) with quantiles q of distances of resampled sets. Resampling adds the bias of a finite set once more,
    and the pivot subtracts it. The interval is for the distance of infinitely many samples, as far as the bias of d
    equals that of a resample. It does not cover the variation between training runs.

    `NAME_infinity` is the intercept of a line through d(n) over 1 / n for random subsets of n samples (Chong and
    Forsyth 2020, https://arxiv.org/abs/1911.07023).
    """

    least = 20
    features: list[Tensor]

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        name: str = "fd",
        statistics: str | None = None,
        cache: str | None = None,
        resamples: int = 100,
        confidence: float = 0.95,
        subsets: int = 15,
    ) -> None:
        """Take the arguments of `FrechetDistance` and those of the interval.

        Args:
            extractor: as of `FrechetDistance`.
            name: as of `FrechetDistance`.
            statistics: as of `FrechetDistance`.
            cache: as of `FrechetDistance`.
            resamples: number of bootstrap samples.
            confidence: level of the interval.
            subsets: number of subsets of N / 10 to N samples for the limit.

        Raises:
            ValueError: unless resamples >= 10, 0 < confidence < 1 and subsets >= 2.
        """
        super().__init__(extractor, name=name, statistics=statistics, cache=cache)
        if not (resamples >= 10 and 0 < confidence < 1 and subsets >= 2):
            raise ValueError(
                "FrechetInterval needs resamples >= 10, 0 < confidence < 1 and subsets >= 2, "
                f"got {resamples}, {confidence} and {subsets}"
            )
        self.resamples, self.confidence, self.subsets = resamples, confidence, subsets

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Estimate the statistics of the real data, as `FrechetDistance`."""
        super().prepare(reference)
        self.add_rows("features", len(self.reference_mean))

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add the features of `x` (B, *); labels are ignored.

        Raises:
            ValueError: as of `FrechetDistance`.
        """
        features = self._sample_features(x)
        self._add(features)
        self.features.append(features.to(torch.float32))

    def compute(self) -> dict[str, Tensor]:
        """Return the distance, its interval and its limit.

        Raises:
            ValueError: if there are fewer than 20 samples.
        """
        result = super().compute()
        distance = result[self.name]
        rows = self.rows("features").to(torch.float64)
        if len(rows) < self.least:
            raise ValueError(f"{self.name}: an interval needs at least {self.least} samples, got {len(rows)}")
        rows = rows[rows.sum(1).argsort()]  # an order independent of processes
        generator = torch.Generator().manual_seed(0)
        draws = [torch.randint(len(rows), (len(rows),), generator=generator) for _ in range(self.resamples)]
        distances = torch.stack([self._distance(rows[draw.to(rows.device)]) for draw in draws])
        tail = (1 - self.confidence) / 2
        low, high = distances.quantile(tail), distances.quantile(1 - tail)
        sizes = torch.linspace(max(10, len(rows) // 10), len(rows), self.subsets).long().tolist()
        order = [torch.randperm(len(rows), generator=generator)[:size].to(rows.device) for size in sizes]
        curve = torch.stack([self._distance(rows[chosen]) for chosen in order])
        line = torch.stack([torch.ones(self.subsets), 1 / torch.tensor(sizes)], dim=1).to(curve)
        limit = torch.linalg.lstsq(line, curve[:, None]).solution[0, 0]
        ends = {"low": 2 * distance - high, "high": 2 * distance - low, "infinity": limit}
        return result | {f"{self.name}_{key}": value for key, value in ends.items()}

    def _distance(self, features: Tensor) -> Tensor:
        """Return the distance of `features` (N, F) to the reference."""
        return frechet_distance(self.reference_mean, self.reference_covariance, features.mean(0), features.mT.cov())
