"""Statistics and features of reference data, and their on-disk caches."""

from __future__ import annotations

from lightning_guide.evaluation.reference.cache import FeatureCache, ReferenceCache, StatisticsCache
from lightning_guide.evaluation.reference.statistics import Statistics

__all__ = ["FeatureCache", "ReferenceCache", "Statistics", "StatisticsCache"]
