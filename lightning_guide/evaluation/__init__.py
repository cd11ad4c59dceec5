"""Evaluation: feature extractors, metrics of generated samples, and the loops that draw the samples."""

from __future__ import annotations

from lightning_guide.evaluation.agreement import ClassAgreement
from lightning_guide.evaluation.agreement_by_class import AgreementByClass
from lightning_guide.evaluation.class_shares import ClassShares
from lightning_guide.evaluation.clip import ClipFeatures, ClipScore
from lightning_guide.evaluation.density import DensityMetrics
from lightning_guide.evaluation.density_coverage import DensityCoverage
from lightning_guide.evaluation.dinov2 import DINOv2Features
from lightning_guide.evaluation.features import ClassifierFeatures, FeatureExtractor, RawPixels, TimmFeatures
from lightning_guide.evaluation.frechet import FrechetDistance, frechet_distance
from lightning_guide.evaluation.frechet_interval import FrechetInterval
from lightning_guide.evaluation.inception import InceptionFeatures
from lightning_guide.evaluation.inception_score import InceptionScore
from lightning_guide.evaluation.kernel_distance import CMMD, KernelDistance
from lightning_guide.evaluation.memorisation import Memorisation
from lightning_guide.evaluation.metric import SampleMetric
from lightning_guide.evaluation.module_features import ModuleFeatures
from lightning_guide.evaluation.off_support import OffSupport
from lightning_guide.evaluation.path_metrics import PathMetrics
from lightning_guide.evaluation.precision_recall import PrecisionRecall

__all__ = [
    "AgreementByClass",
    "CMMD",
    "ClassAgreement",
    "ClassShares",
    "ClassifierFeatures",
    "ClipFeatures",
    "ClipScore",
    "DINOv2Features",
    "DensityCoverage",
    "DensityMetrics",
    "FeatureExtractor",
    "FrechetDistance",
    "FrechetInterval",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "Memorisation",
    "ModuleFeatures",
    "OffSupport",
    "PathMetrics",
    "PrecisionRecall",
    "RawPixels",
    "SampleMetric",
    "TimmFeatures",
    "frechet_distance",
]
