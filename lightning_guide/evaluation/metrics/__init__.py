"""metrics."""

from __future__ import annotations

from lightning_guide.evaluation.metrics.base import FeatureMetric, SampleMetric
from lightning_guide.evaluation.metrics.class_agreement import AgreementByClass, ClassAgreement, ClassShares
from lightning_guide.evaluation.metrics.clip_score import ClipScore
from lightning_guide.evaluation.metrics.exact_density import DensityMetrics
from lightning_guide.evaluation.metrics.frechet import FrechetDistance, frechet_distance
from lightning_guide.evaluation.metrics.frechet_interval import FrechetInterval
from lightning_guide.evaluation.metrics.inception_score import InceptionScore, Judge
from lightning_guide.evaluation.metrics.kernel import CMMD, KernelDistance, MeanDiscrepancy
from lightning_guide.evaluation.metrics.memorization import Memorisation
from lightning_guide.evaluation.metrics.motion import PathMetrics
from lightning_guide.evaluation.metrics.off_support import OffSupport
from lightning_guide.evaluation.metrics.precision_recall import DensityCoverage, NeighbourBalls, PrecisionRecall

__all__ = [
    "AgreementByClass",
    "CMMD",
    "ClassAgreement",
    "ClassShares",
    "ClipScore",
    "DensityCoverage",
    "DensityMetrics",
    "FeatureMetric",
    "FrechetDistance",
    "FrechetInterval",
    "InceptionScore",
    "Judge",
    "KernelDistance",
    "MeanDiscrepancy",
    "Memorisation",
    "NeighbourBalls",
    "OffSupport",
    "PathMetrics",
    "PrecisionRecall",
    "SampleMetric",
    "frechet_distance",
]
