"""Spatial Frechet inception distance (sFID)."""

from __future__ import annotations

from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.features.spatial import SpatialFeatures
from lightning_guide.evaluation.metrics.frechet import FrechetDistance

__all__ = ["SFID"]


class SFID(FrechetDistance):
    """Spatial FID `sfid`: Frechet distance of `InceptionFeatures.spatial`, which keep the places in the image.

    Nash et al. 2021, https://arxiv.org/abs/2103.03841; reported in tables of ADM's evaluator beside FID. Lower is
    better. That evaluator's `mu_s` and `sigma_s` are not read.
    """

    def __init__(self, extractor: FeatureExtractor, *, statistics: str | None = None, cache: str | None = None) -> None:
        """Take an extractor with spatial features and the other arguments of `FrechetDistance`.

        Raises:
            ValueError: if it has none, or both a file of statistics and a cache are given.
        """
        super().__init__(SpatialFeatures(extractor), name="sfid", statistics=statistics, cache=cache)
