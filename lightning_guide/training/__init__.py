"""Training losses, augmentation, learning rates, monitoring and sharding."""

from __future__ import annotations

from lightning_guide.training.augmentation import AugmentedLoss, GeometricAugmentation
from lightning_guide.training.gft import GuidanceFreeLoss
from lightning_guide.training.learning_rate import ConstantRate, Cooldown, InverseSqrtRate, LearningRate
from lightning_guide.training.losses import (
    EDMLoss,
    EpsilonLoss,
    FlowMatchingLoss,
    LossTerms,
    PredictionLoss,
    ScoreMatchingLoss,
    TrainingLoss,
    Uncertainty,
    VelocityLoss,
    WeightedLoss,
)
from lightning_guide.training.monitor import GradientGuard, HeldoutLoss, NoiseLevelMeans, TrainingDivergedError
from lightning_guide.training.sharding import ShardedTraining

__all__ = [
    "AugmentedLoss",
    "ConstantRate",
    "Cooldown",
    "EDMLoss",
    "EpsilonLoss",
    "FlowMatchingLoss",
    "GeometricAugmentation",
    "GradientGuard",
    "GuidanceFreeLoss",
    "HeldoutLoss",
    "InverseSqrtRate",
    "LearningRate",
    "LossTerms",
    "NoiseLevelMeans",
    "PredictionLoss",
    "ScoreMatchingLoss",
    "ShardedTraining",
    "TrainingDivergedError",
    "TrainingLoss",
    "Uncertainty",
    "VelocityLoss",
    "WeightedLoss",
]
