"""Objectives: functions of samples that are to be maximised, one number for each sample."""

from lightning_guide.objectives.backbones import Backbone, OpenClipBackbone, TimmBackbone
from lightning_guide.objectives.bridge import NegativeEnergy, NegativeReward
from lightning_guide.objectives.class_log_probability import ClassLogProbability
from lightning_guide.objectives.decoded import Decoded
from lightning_guide.objectives.distance import NegativeDistance
from lightning_guide.objectives.function import TorchFunction
from lightning_guide.objectives.heads import FileHead, Head, RandomHead
from lightning_guide.objectives.linear import Linear
from lightning_guide.objectives.objective import Objective
from lightning_guide.objectives.quadratic import Quadratic
from lightning_guide.objectives.reward import Reward

__all__ = [
    "Backbone",
    "ClassLogProbability",
    "Decoded",
    "FileHead",
    "Head",
    "Linear",
    "NegativeDistance",
    "NegativeEnergy",
    "NegativeReward",
    "Objective",
    "OpenClipBackbone",
    "Quadratic",
    "RandomHead",
    "Reward",
    "TimmBackbone",
    "TorchFunction",
]
