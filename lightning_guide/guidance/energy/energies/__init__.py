"""Losses of the clean estimate: what samples are wanted."""

from lightning_guide.guidance.energy.energies.at_level import AtLevel
from lightning_guide.guidance.energy.energies.class_label import ClassLabel
from lightning_guide.guidance.energy.energies.distance import Distance, NetworkDistance, SquaredDistance, Style
from lightning_guide.guidance.energy.energies.energy import Energy, WeightedSum
from lightning_guide.guidance.energy.energies.measurement import Measurement
from lightning_guide.guidance.energy.energies.motion import Goal, Integrated, Obstacle
from lightning_guide.guidance.energy.energies.named_network import NamedNetwork
from lightning_guide.guidance.energy.energies.networks import RunNetwork, TimmNetwork
from lightning_guide.guidance.energy.energies.operators import Blurred, Boxed, Compressed, Downsampled, Masked
from lightning_guide.guidance.energy.energies.region import Disc, HalfSpace
from lightning_guide.guidance.energy.energies.text import TextMatch

__all__ = [
    "AtLevel",
    "Blurred",
    "Boxed",
    "ClassLabel",
    "Compressed",
    "Disc",
    "Distance",
    "Downsampled",
    "Energy",
    "Goal",
    "HalfSpace",
    "Integrated",
    "Masked",
    "Measurement",
    "NamedNetwork",
    "NetworkDistance",
    "Obstacle",
    "SquaredDistance",
    "RunNetwork",
    "Style",
    "TextMatch",
    "TimmNetwork",
    "WeightedSum",
]
