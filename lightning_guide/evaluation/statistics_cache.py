"""The cache of mean and covariance of real features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.reference_cache import ReferenceCache
from lightning_guide.evaluation.statistics import Statistics, read_statistics, write_statistics

__all__ = ["StatisticsCache"]


class StatisticsCache(ReferenceCache[Statistics]):
    """`Statistics`, in files that `read_statistics` reads."""

    what = "reference statistics"

    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Statistics | None:
        """As `read_statistics`, None if the file belongs to other data."""
        found = read_statistics(path, extractor)
        return found if (found.data, found.num_images) == (data, count) else None

    def write(self, path: Path, value: Statistics, extractor: FeatureExtractor, data: str) -> None:
        """With what they belong to."""
        write_statistics(path, replace(value, extractor=extractor.identity, data=data))
