"""The methods of the literature, each a setting of `EnergyGuidance`."""

from lightning_guide.guidance.energy.methods.calibrated import EluCD
from lightning_guide.guidance.energy.methods.classifier import ClassifierGuidance
from lightning_guide.guidance.energy.methods.freedom import AugmentedPolyak, FreeDoM, FreeDoMCLIP
from lightning_guide.guidance.energy.methods.loss_guided import LossGuidedDiffusion
from lightning_guide.guidance.energy.methods.manifold_preserving import MPGD, MPGDLatent
from lightning_guide.guidance.energy.methods.posterior_sampling import DPS, AdamDPS
from lightning_guide.guidance.energy.methods.tfg import TFG
from lightning_guide.guidance.energy.methods.universal import UniversalGuidance

__all__ = [
    "MPGD",
    "TFG",
    "AdamDPS",
    "AugmentedPolyak",
    "ClassifierGuidance",
    "DPS",
    "EluCD",
    "FreeDoM",
    "FreeDoMCLIP",
    "LossGuidedDiffusion",
    "MPGDLatent",
    "UniversalGuidance",
]
