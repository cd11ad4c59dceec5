"""Feature extractors for Frechet distances, precision and recall, and other metrics."""

from __future__ import annotations

from lightning_guide.evaluation.features.base import (
    ClassifierFeatures,
    FeatureExtractor,
    Identity,
    RawPixels,
    TimmFeatures,
)
from lightning_guide.evaluation.features.clip import ClipFeatures
from lightning_guide.evaluation.features.dinov2 import DINOv2Features
from lightning_guide.evaluation.features.inception import InceptionFeatures
from lightning_guide.evaluation.features.lpips import LpipsFeatures
from lightning_guide.evaluation.features.module import ModuleFeatures
from lightning_guide.evaluation.features.spatial import SpatialFeatures

__all__ = [
    "ClassifierFeatures",
    "ClipFeatures",
    "DINOv2Features",
    "FeatureExtractor",
    "Identity",
    "InceptionFeatures",
    "LpipsFeatures",
    "ModuleFeatures",
    "RawPixels",
    "SpatialFeatures",
    "TimmFeatures",
]
