"""Guidances: denoisers made of denoisers, configured by class_path and composed by nesting."""

from lightning_guide.guidance.attention import (
    EntropyRectifyingGuidance,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
)
from lightning_guide.guidance.autoguidance import Autoguidance, AutoguidanceBlend
from lightning_guide.guidance.blocks import SkipLayerGuidance, StochasticSelfGuidance
from lightning_guide.guidance.classifier_free import ClassifierFreeGuidance, Unconditional
from lightning_guide.guidance.classifier_free_pp import ClassifierFreeGuidancePP
from lightning_guide.guidance.condition import ConditionAnnealedGuidance, IndependentConditionGuidance
from lightning_guide.guidance.degraded import NoisyInput
from lightning_guide.guidance.energy import (
    DPS,
    MPGD,
    TFG,
    AdamDPS,
    AugmentedPolyak,
    ClassifierGuidance,
    EluCD,
    EnergyGuidance,
    FreeDoM,
    FreeDoMCLIP,
    LossGuidedDiffusion,
    MPGDLatent,
    UniversalGuidance,
)
from lightning_guide.guidance.gradient import (
    ConstantStrength,
    GradientGuidance,
    LookAhead,
    LookAheadWithoutJacobian,
    NaiveGradient,
    PaperStrength,
    PosteriorStrength,
    Tilt,
)
from lightning_guide.guidance.guidance import Guidance
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.input import (
    MaskedSlidingWindowGuidance,
    SelfAttentionGuidance,
    SlidingWindowGuidance,
)
from lightning_guide.guidance.neon import Neon
from lightning_guide.guidance.noise_level import TimeStepGuidance
from lightning_guide.guidance.perturbed import Perturbed
from lightning_guide.guidance.references import Main, Snapshot
from lightning_guide.guidance.score_scaling import ScoreScaling
from lightning_guide.guidance.sims import SIMS
from lightning_guide.guidance.tokens import TokenPerturbationGuidance
from lightning_guide.guidance.weights import CosineWeight, Interval, WeightSchedule

__all__ = [
    "AdamDPS",
    "AugmentedPolyak",
    "Autoguidance",
    "AutoguidanceBlend",
    "ClassifierFreeGuidance",
    "ClassifierFreeGuidancePP",
    "ClassifierGuidance",
    "ConditionAnnealedGuidance",
    "ConstantStrength",
    "CosineWeight",
    "DPS",
    "EluCD",
    "EnergyGuidance",
    "EntropyRectifyingGuidance",
    "FreeDoM",
    "FreeDoMCLIP",
    "GradientGuidance",
    "Guidance",
    "Guided",
    "IndependentConditionGuidance",
    "Interval",
    "LookAhead",
    "LookAheadWithoutJacobian",
    "LossGuidedDiffusion",
    "MPGD",
    "MPGDLatent",
    "Main",
    "MaskedSlidingWindowGuidance",
    "NaiveGradient",
    "Neon",
    "NoisyInput",
    "PaperStrength",
    "Perturbed",
    "PerturbedAttentionGuidance",
    "PosteriorStrength",
    "SIMS",
    "ScoreScaling",
    "SelfAttentionGuidance",
    "SkipLayerGuidance",
    "SlidingWindowGuidance",
    "SmoothedEnergyGuidance",
    "Snapshot",
    "StochasticSelfGuidance",
    "TFG",
    "Tilt",
    "TimeStepGuidance",
    "TokenPerturbationGuidance",
    "Unconditional",
    "UniversalGuidance",
    "WeightSchedule",
]
