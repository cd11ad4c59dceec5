"""Losses of the clean estimate: what samples are wanted."""

from lightning_guide.guidance.energy.objectives.at_level import AtLevel
from lightning_guide.guidance.energy.objectives.class_label import ClassLabel
from lightning_guide.guidance.energy.objectives.distance import Distance, NetworkDistance, Quadratic, Style
from lightning_guide.guidance.energy.objectives.measurement import Measurement
from lightning_guide.guidance.energy.objectives.motion import Goal, Integrated, Obstacle
from lightning_guide.guidance.energy.objectives.named_network import NamedNetwork
from lightning_guide.guidance.energy.objectives.networks import RunNetwork, TimmNetwork
from lightning_guide.guidance.energy.objectives.objective import Objective, WeightedSum
from lightning_guide.guidance.energy.objectives.operators import Blurred, Boxed, Compressed, Downsampled, Masked
from lightning_guide.guidance.energy.objectives.region import Disc, HalfSpace
from lightning_guide.guidance.energy.objectives.text import TextMatch

__all__ = [
    "AtLevel",
    "Blurred",
    "Boxed",
    "ClassLabel",
    "Compressed",
    "Disc",
    "Distance",
    "Downsampled",
    "Goal",
    "HalfSpace",
    "Integrated",
    "Masked",
    "Measurement",
    "NamedNetwork",
    "NetworkDistance",
    "Objective",
    "Obstacle",
    "Quadratic",
    "RunNetwork",
    "Style",
    "TextMatch",
    "TimmNetwork",
    "WeightedSum",
]
