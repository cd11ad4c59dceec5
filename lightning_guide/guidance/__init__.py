"""Guidances: denoisers made of denoisers, configured by class_path and composed by nesting."""

from lightning_guide.guidance.attention import PerturbedAttentionGuidance
from lightning_guide.guidance.autoguidance import Autoguidance, AutoguidanceBlend
from lightning_guide.guidance.classifier_free import ClassifierFreeGuidance, Unconditional
from lightning_guide.guidance.guided import Guidance, Guided
from lightning_guide.guidance.neon import Neon
from lightning_guide.guidance.references import Main, Snapshot
from lightning_guide.guidance.score_scaling import ScoreScaling
from lightning_guide.guidance.weights import CosineWeight, Interval, WeightSchedule

__all__ = [
    "Autoguidance",
    "AutoguidanceBlend",
    "ClassifierFreeGuidance",
    "CosineWeight",
    "Guidance",
    "Guided",
    "Interval",
    "Main",
    "Neon",
    "PerturbedAttentionGuidance",
    "ScoreScaling",
    "Snapshot",
    "Unconditional",
    "WeightSchedule",
]
