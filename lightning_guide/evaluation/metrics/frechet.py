"""Frechet distance (FD) between the Gaussians fitted to real and to generated features.

Dowson and Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X; for generated images Heusel et al. 2017,
https://arxiv.org/abs/1706.08500. FID and FD_DINOv2 are this distance with two feature extractors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.reference.cache import StatisticsCache
from lightning_guide.evaluation.reference.statistics import Statistics, read_statistics
from lightning_guide.utils.distributed import rank_and_world, run_on_all_ranks
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.needs import attempt

__all__ = ["FrechetDistance", "frechet_distance", "mean_and_covariance"]


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    r"""Return |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), a float64 scalar; NaN unless all is finite.

    With any A such that A A^T = S_1, the eigenvalues of S_1 S_2 are those of the symmetric A^T S_2 A (and zeros), and
    the trace of the root is the sum of their roots. A is the Cholesky factor of S_1; if S_1 is singular,
    A = Q w^(1/2) with the eigenvectors Q of the eigenvalues w that are not zero up to rounding.

    Examples:
        >>> distance = frechet_distance(torch.zeros(3), torch.eye(3), torch.ones(3), 4 * torch.eye(3))
        >>> round(float(distance), 6)  # 3 (1 - 0)^2 + 3 (2 - 1)^2
        6.0

    Args:
        mean_1: m_1 (F,).
        cov_1: S_1 (F, F), symmetric positive semidefinite.
        mean_2: m_2 (F,).
        cov_2: S_2 (F, F).

    Raises:
        ValueError: if the shapes do not fit.
    """
    shapes = [tuple(t.shape) for t in (mean_1, cov_1, mean_2, cov_2)]
    size = mean_1.numel()
    if shapes != [(size,), (size, size)] * 2:
        raise ValueError(f"Frechet distance needs shapes (F,), (F, F), (F,), (F, F) with one F, got {shapes}")
    mean_1, cov_1, mean_2, cov_2 = (t.to(torch.float64) for t in (mean_1, cov_1, mean_2, cov_2))
    without_roots = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace()
    if not (without_roots + cov_1.sum() + cov_2.sum()).isfinite():
        return torch.full_like(without_roots, torch.nan)
    factor, failed = torch.linalg.cholesky_ex(cov_1)
    if failed:
        values, vectors = torch.linalg.eigh(cov_1)
        kept = values > values.max().clamp(min=0) * size * torch.finfo(torch.float64).eps
        factor = vectors[:, kept] * values[kept].sqrt()
    roots = torch.linalg.eigvalsh(factor.mT @ cov_2 @ factor).clamp(min=0).sqrt()
    return (without_roots - 2 * roots.sum()).clamp(min=0)


def mean_and_covariance(count: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (F,) and unbiased covariance (F, F) from n (), sum f (F,) and sum f f^T (F, F), in float64.

    The covariance is symmetric to the bit, so that it is the same when it is read from a file.
    """
    mean = total / count
    covariance = (outer - torch.outer(total, mean)) / (count - 1)
    return mean, (covariance + covariance.mT) / 2


class FrechetDistance(SampleMetric):
    """Frechet distance (FD) of generated to real features; the state is sums, independent of the number of samples."""

    least = 2
    count: Tensor
    total: Tensor
    outer: Tensor
    reference_mean: Tensor
    reference_covariance: Tensor

    def __init__(
        self, extractor: FeatureExtractor, *, name: str = "fd", statistics: str | None = None, cache: str | None = None
    ) -> None:
        """Choose extractor and reference.

        Args:
            extractor: of the features.
            name: key of the result.
            statistics: file with mean and covariance of real features (`read_statistics`), instead of the real data.
            cache: folder that stores those of the real data (`StatisticsCache`); None computes them in every run.

        Raises:
            ValueError: if both are given.
        """
        super().__init__()
        if statistics is not None and cache is not None:
            raise ValueError(f"{name}: statistics of a file are not cached; expected statistics or cache, got both")
        self.extractor = extractor
        self.name, self.statistics, self.cache = name, statistics, cache
        self._data_shape: tuple[int, ...] | None = None
        self._declare(0)
        self.register_buffer("reference_mean", torch.empty(0, dtype=torch.float64), persistent=False)
        self.register_buffer("reference_covariance", torch.empty(0, 0, dtype=torch.float64), persistent=False)

    def missing(self, sample: Batch | None, count: int, reference: Iterable[Batch]) -> Iterator[str]:
        """Yield what is missing, a file of statistics or real examples included."""
        yield from super().missing(sample, count, reference)
        if self.statistics is None:
            yield from self.too_few(reference, 2)
        elif not list(self.extractor.missing()):
            if error := attempt(lambda: self._fits_statistics(sample)):
                yield error
        elif not Path(self.statistics).is_file():
            yield f"reference statistics: there is no file {self.statistics}{did_you_mean(self.statistics)}"

    def _fits_statistics(self, sample: Batch | None) -> None:
        """Check that the file holds statistics of the features of `sample`."""
        assert self.statistics is not None
        fitted = read_statistics(self.statistics, self.extractor)
        if sample is not None:
            self._fitting(sample.x, fitted.data_shape, len(fitted.mean))

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Estimate mean and covariance of the features of the real data; with `statistics` the data are not read.

        Raises:
            ValueError: if there are fewer than two examples, or the file does not hold statistics of these features.
        """
        if self.statistics is not None:
            self.extractor.load()  # missing weights fail before samples are drawn
            fitted = read_statistics(self.statistics, self.extractor)
        elif self.cache is not None:
            fitted = StatisticsCache(self.cache).get(self.extractor, reference, lambda: self.fit(reference))
        else:
            fitted = self.fit(reference)
        self.use(fitted)

    def use(self, fitted: Statistics) -> None:
        """Take the statistics of the real data from `fitted`."""
        self.reference_mean, self.reference_covariance = (
            part.to(self.device) for part in (fitted.mean, fitted.covariance)
        )
        self._data_shape = fitted.data_shape
        self._declare(len(fitted.mean))

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add the features of `x` (B, *); labels are ignored.

        Raises:
            ValueError: if `prepare` was not called, or the samples or their features have another shape than the
                reference.
        """
        self._add(self._sample_features(x))

    def compute(self) -> dict[str, Tensor]:
        """Return the distance under the key `name`.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        self._check_prepared(self.reference_mean.numel() > 0)
        self._check_count("samples")
        mean, covariance = mean_and_covariance(self.count, self.total, self.outer)
        return {self.name: frechet_distance(self.reference_mean, self.reference_covariance, mean, covariance)}

    def fit(self, reference: Iterable[Batch]) -> Statistics:
        """Return statistics of the features of `reference`; resets the sums of samples.

        Every process has to call this with the same `reference`. Each process extracts the features of its share of
        the batches, and the sums are added.

        Raises:
            ValueError: if there are fewer than two examples.
        """
        self._declare(0)
        shape: tuple[int, ...] | None = None
        rank, world = rank_and_world()

        def add_share() -> None:
            nonlocal shape
            for number, batch in enumerate(reference):
                shape = tuple(batch.x.shape[1:])
                if number and number % world != rank:
                    continue
                features = self._features(batch.x)
                if number == 0:  # all processes need its width
                    self._declare(features.shape[1])
                if number % world == rank:
                    self._add(features)

        run_on_all_ranks(add_share)  # an error on one of them must not leave the others waiting for the sums
        with self.sync_context():
            self._check_count("real examples")
            mean, covariance = mean_and_covariance(self.count, self.total, self.outer)
            count = int(self.count)
        self.reset()
        return Statistics(mean, covariance, num_images=count, data_shape=shape)

    def _sample_features(self, x: Tensor) -> Tensor:
        """Return features (B, F) of samples, float64."""
        self._check_prepared(self.reference_mean.numel() > 0)
        return self._fitting(x, self._data_shape, len(self.reference_mean))

    def _fitting(self, x: Tensor, data_shape: tuple[int, ...] | None, width: int) -> Tensor:
        """Return features (B, F) of `x`, after a check against the shapes of the reference."""
        if data_shape not in (None, tuple(x.shape[1:])):
            raise ValueError(
                f"{self.name}: the reference statistics are those of data of shape {data_shape}, "
                f"the samples have shape {tuple(x.shape[1:])}"
            )
        features = self._features(x)
        if features.shape[1] != width:
            raise ValueError(
                f"{self.name}: the reference statistics are those of {width} features, "
                f"{self.extractor.title()} returns {features.shape[1]}"
            )
        return features

    def _declare(self, width: int) -> None:
        """Declare states for features of `width`."""
        self.add_sum("count")
        self.add_sum("total", width)
        self.add_sum("outer", width, width)

    def _features(self, x: Tensor) -> Tensor:
        return self.extractor(x.to(self.device)).to(torch.float64)

    def _add(self, features: Tensor) -> None:
        """Add rows (B, F) to the sums."""
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.mT @ features

    def _check_count(self, what: str) -> None:
        if self.count < 2:
            raise ValueError(f"{self.name} needs at least 2 {what} to estimate a covariance, got {int(self.count)}")
