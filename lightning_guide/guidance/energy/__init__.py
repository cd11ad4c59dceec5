"""Training-free guidance by a loss of the clean estimate: an algebra, and the methods that are settings of it."""

from lightning_guide.guidance.energy.accumulation import Probe
from lightning_guide.guidance.energy.adam import Adam
from lightning_guide.guidance.energy.augmentations import (
    AddedNoise,
    Colour,
    Cutout,
    Rescaled,
    Resized,
    Translation,
)
from lightning_guide.guidance.energy.augmented import Augmented
from lightning_guide.guidance.energy.autoencoder import Autoencoder, Reconstructed, RunAutoencoder, Subspace
from lightning_guide.guidance.energy.capped import Capped
from lightning_guide.guidance.energy.energies import (
    AtLevel,
    ClassLabel,
    Disc,
    Distance,
    Energy,
    Goal,
    HalfSpace,
    Integrated,
    Measurement,
    NamedNetwork,
    NetworkDistance,
    Obstacle,
    RunNetwork,
    SquaredDistance,
    Style,
    TextMatch,
    TimmNetwork,
    WeightedSum,
)
from lightning_guide.guidance.energy.energy_guidance import EnergyGuidance
from lightning_guide.guidance.energy.estimator import Estimator, PlugIn
from lightning_guide.guidance.energy.methods import (
    DPS,
    MPGD,
    TFG,
    AdamDPS,
    AugmentedPolyak,
    ClassifierGuidance,
    EluCD,
    FreeDoM,
    FreeDoMCLIP,
    LossGuidedDiffusion,
    MPGDLatent,
    UniversalGuidance,
)
from lightning_guide.guidance.energy.monte_carlo import MonteCarlo
from lightning_guide.guidance.energy.moves import AtClean, InLatent, Move, ThroughDenoiser
from lightning_guide.guidance.energy.polyak import Polyak, TruePolyak
from lightning_guide.guidance.energy.schedules import Balanced, PowerLaw, Schedule
from lightning_guide.guidance.energy.step_rule import Constant, Normalised, RootMeanSquare, StepRule
from lightning_guide.guidance.energy.window import Window

__all__ = [
    "DPS",
    "MPGD",
    "TFG",
    "Adam",
    "AdamDPS",
    "AddedNoise",
    "AtClean",
    "AtLevel",
    "Augmented",
    "AugmentedPolyak",
    "Autoencoder",
    "Balanced",
    "Capped",
    "ClassLabel",
    "ClassifierGuidance",
    "Colour",
    "Constant",
    "Cutout",
    "Disc",
    "Distance",
    "EluCD",
    "EnergyGuidance",
    "Estimator",
    "FreeDoM",
    "FreeDoMCLIP",
    "Goal",
    "HalfSpace",
    "InLatent",
    "Integrated",
    "LossGuidedDiffusion",
    "MPGDLatent",
    "Measurement",
    "MonteCarlo",
    "Move",
    "NamedNetwork",
    "NetworkDistance",
    "Normalised",
    "Energy",
    "Obstacle",
    "PlugIn",
    "Polyak",
    "PowerLaw",
    "Probe",
    "SquaredDistance",
    "Reconstructed",
    "Rescaled",
    "Resized",
    "RootMeanSquare",
    "RunAutoencoder",
    "RunNetwork",
    "Schedule",
    "StepRule",
    "Style",
    "Subspace",
    "TextMatch",
    "ThroughDenoiser",
    "TimmNetwork",
    "Translation",
    "TruePolyak",
    "UniversalGuidance",
    "WeightedSum",
    "Window",
]
