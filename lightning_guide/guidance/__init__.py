"""Guidances: denoisers made of denoisers, configured by class_path and composed by nesting.

The folder of a method follows from its kind:

* `negatives`: another prediction that the positive one is pushed away from.
* `combinations`: another rule of how positive and negative predictions are combined.
* `training_free`: the gradient of a loss of the clean estimate.
* `gradient`: a direction toward a target that rounds of sampling update.
* `posterior`: samples given a linear measurement.
* `particles`: samplers that choose among particles by a loss.
"""

from __future__ import annotations

from lightning_guide.guidance import combinations, gradient, negatives, particles, posterior, training_free
from lightning_guide.guidance.attention import AttentionPerturbation, ChangedMap, ChangedQueries
from lightning_guide.guidance.base import Guidance, Main, Reference, Snapshot, Unadapted
from lightning_guide.guidance.branches import Branches, ConditionReplacement, PredictionNegative
from lightning_guide.guidance.clipped import Clipped
from lightning_guide.guidance.combinations import *
from lightning_guide.guidance.gradient import *
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.negatives import *
from lightning_guide.guidance.particles import *
from lightning_guide.guidance.perturbation import (
    ChangedEmbedding,
    ConditionPerturbation,
    ModuleWrapper,
    Perturbation,
    Perturbed,
    Replacement,
)
from lightning_guide.guidance.posterior import *
from lightning_guide.guidance.schedules import Interval, StepWindow, WeightSchedule
from lightning_guide.guidance.training_free import *
from lightning_guide.guidance.weights import CosineWeight, PowerWeight, SNRWeight, TableWeight

__all__ = [
    "ModuleWrapper",
    "AttentionPerturbation",
    "Branches",
    "ChangedEmbedding",
    "ChangedMap",
    "ChangedQueries",
    "Clipped",
    "ConditionPerturbation",
    "CosineWeight",
    "Guidance",
    "Guided",
    "Interval",
    "Main",
    "ConditionReplacement",
    "Perturbation",
    "Perturbed",
    "PowerWeight",
    "PredictionNegative",
    "Reference",
    "Replacement",
    "SNRWeight",
    "Snapshot",
    "StepWindow",
    "TableWeight",
    "Unadapted",
    "WeightSchedule",
]
__all__ += combinations.__all__
__all__ += gradient.__all__
__all__ += negatives.__all__
__all__ += particles.__all__
__all__ += posterior.__all__
__all__ += training_free.__all__
