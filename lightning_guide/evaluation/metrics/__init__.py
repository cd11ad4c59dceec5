"""Metrics of generated samples."""

from __future__ import annotations

from lightning_guide.evaluation.metrics.aesthetic import AestheticScore
from lightning_guide.evaluation.metrics.authenticity import Authenticity
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.metrics.class_accuracy import AccuracyByClass, ClassAccuracy, ClassShares
from lightning_guide.evaluation.metrics.clip_score import ClipScore
from lightning_guide.evaluation.metrics.exact_density import DensityMetrics
from lightning_guide.evaluation.metrics.features import FeatureMetric
from lightning_guide.evaluation.metrics.frechet import FrechetDistance, frechet_distance
from lightning_guide.evaluation.metrics.frechet_interval import FrechetInterval
from lightning_guide.evaluation.metrics.hps import HPS
from lightning_guide.evaluation.metrics.image_reward import ImageReward
from lightning_guide.evaluation.metrics.inception_score import InceptionScore, Judge
from lightning_guide.evaluation.metrics.kernel import CMMD, KernelDistance, MeanDiscrepancy
from lightning_guide.evaluation.metrics.lpips_diversity import LpipsDiversity
from lightning_guide.evaluation.metrics.mean import MeanMetric
from lightning_guide.evaluation.metrics.memorization import Memorization
from lightning_guide.evaluation.metrics.mind import MIND, squared_wasserstein
from lightning_guide.evaluation.metrics.motion import MotionMetrics
from lightning_guide.evaluation.metrics.off_support import OffSupport
from lightning_guide.evaluation.metrics.precision_recall import DensityCoverage, NeighborBalls, PrecisionRecall
from lightning_guide.evaluation.metrics.prompt_score import PackageScore, PromptScore
from lightning_guide.evaluation.metrics.sfid import SFID
from lightning_guide.evaluation.metrics.vendi import VendiScore, vendi_score

__all__ = [
    "AccuracyByClass",
    "AestheticScore",
    "Authenticity",
    "CMMD",
    "ClassAccuracy",
    "ClassShares",
    "ClipScore",
    "DensityCoverage",
    "DensityMetrics",
    "FeatureMetric",
    "FrechetDistance",
    "FrechetInterval",
    "HPS",
    "ImageReward",
    "InceptionScore",
    "Judge",
    "KernelDistance",
    "LpipsDiversity",
    "MIND",
    "MeanDiscrepancy",
    "MeanMetric",
    "Memorization",
    "NeighborBalls",
    "OffSupport",
    "MotionMetrics",
    "PackageScore",
    "PrecisionRecall",
    "PromptScore",
    "SFID",
    "SampleMetric",
    "VendiScore",
    "frechet_distance",
    "squared_wasserstein",
    "vendi_score",
]
