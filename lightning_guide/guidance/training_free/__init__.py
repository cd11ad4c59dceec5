"""Training-free guidance by a loss of the clean estimate: `EnergyGuidance` and the published methods, its settings."""

from __future__ import annotations

from lightning_guide.guidance.training_free.augmentations import (
    AddedNoise,
    Augmentation,
    ColorJitter,
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
from lightning_guide.guidance.training_free.local_loss import LocalLoss
from lightning_guide.guidance.training_free.mpgd import MPGD, MPGDLatent
from lightning_guide.guidance.training_free.schedules import Balanced, PowerLaw, Schedule, SigmaWindow, StepContext
from lightning_guide.guidance.training_free.step_rules import (
    AdamStep,
    ClippedStep,
    ConstantStep,
    NoiseScaledPolyakStep,
    NormalizedStep,
    PolyakStep,
    RootMeanSquareStep,
    StepRule,
)
from lightning_guide.guidance.training_free.tfg import TFG
from lightning_guide.guidance.training_free.universal import UniversalGuidance
from lightning_guide.guidance.training_free.updates import AtClean, InLatent, ThroughDenoiser, Update

__all__ = [
    "AdamStep",
    "AdamDPS",
    "AddedNoise",
    "AtClean",
    "Augmentation",
    "Augmented",
    "AugmentedPolyak",
    "Balanced",
    "ClippedStep",
    "ClassifierGuidance",
    "ColorJitter",
    "ConstantStep",
    "Cutout",
    "DPS",
    "EluCD",
    "EnergyGuidance",
    "Estimator",
    "FreeDoM",
    "FreeDoMCLIP",
    "InLatent",
    "LocalLoss",
    "LossGuidedDiffusion",
    "MPGD",
    "MPGDLatent",
    "MonteCarlo",
    "Update",
    "NormalizedStep",
    "PlugIn",
    "StepContext",
    "NoiseScaledPolyakStep",
    "PowerLaw",
    "Probe",
    "Rescaled",
    "Resized",
    "RootMeanSquareStep",
    "Schedule",
    "Sine",
    "StepRule",
    "TFG",
    "ThroughDenoiser",
    "Translation",
    "PolyakStep",
    "UniversalGuidance",
    "SigmaWindow",
]
