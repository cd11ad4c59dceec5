"""Training-free guidance by a loss of the clean estimate: an algebra, and the methods that are settings of it.

The methods of the literature, each a setting of `EnergyGuidance`.
"""

from __future__ import annotations

from lightning_guide.guidance.training_free.augmentations import (
    AddedNoise,
    Augmentation,
    Colour,
    Cutout,
    Rescaled,
    Resized,
    Translation,
)
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.classifier import ClassifierGuidance
from lightning_guide.guidance.training_free.dps import DPS, AdamDPS
from lightning_guide.guidance.training_free.elucd import EluCD, Sine
from lightning_guide.guidance.training_free.estimators import Augmented, Estimator, MonteCarlo, PlugIn
from lightning_guide.guidance.training_free.freedom import AugmentedPolyak, FreeDoM, FreeDoMCLIP
from lightning_guide.guidance.training_free.gradient_probe import Probe
from lightning_guide.guidance.training_free.lgd import LossGuidedDiffusion
from lightning_guide.guidance.training_free.local_loss import Landscape
from lightning_guide.guidance.training_free.mpgd import MPGD, MPGDLatent
from lightning_guide.guidance.training_free.schedules import Balanced, Point, PowerLaw, Schedule, Window
from lightning_guide.guidance.training_free.step_rules import (
    Adam,
    Capped,
    Constant,
    Normalised,
    Polyak,
    RootMeanSquare,
    StepRule,
    TruePolyak,
)
from lightning_guide.guidance.training_free.tfg import TFG
from lightning_guide.guidance.training_free.universal import UniversalGuidance
from lightning_guide.guidance.training_free.updates import AtClean, InLatent, Move, ThroughDenoiser

__all__ = [
    "Adam",
    "AdamDPS",
    "AddedNoise",
    "AtClean",
    "Augmentation",
    "Augmented",
    "AugmentedPolyak",
    "Balanced",
    "Capped",
    "ClassifierGuidance",
    "Colour",
    "Constant",
    "Cutout",
    "DPS",
    "EluCD",
    "EnergyGuidance",
    "Estimator",
    "FreeDoM",
    "FreeDoMCLIP",
    "InLatent",
    "Landscape",
    "LossGuidedDiffusion",
    "MPGD",
    "MPGDLatent",
    "MonteCarlo",
    "Move",
    "Normalised",
    "PlugIn",
    "Point",
    "Polyak",
    "PowerLaw",
    "Probe",
    "Rescaled",
    "Resized",
    "RootMeanSquare",
    "Schedule",
    "Sine",
    "StepRule",
    "TFG",
    "ThroughDenoiser",
    "Translation",
    "TruePolyak",
    "UniversalGuidance",
    "Window",
]
