"""Energies, losses of the clean estimate to be minimized, and objectives, rewards of samples to be maximized."""

from __future__ import annotations

from lightning_guide.objectives.class_label import ClassLabel, ClassLogProbability
from lightning_guide.objectives.composition import (
    Decoded,
    NegativeEnergy,
    NegativeReward,
    Reconstructed,
    Transformed,
    WeightedSum,
)
from lightning_guide.objectives.energy import Energy, Objective
from lightning_guide.objectives.function import TorchFunction
from lightning_guide.objectives.humanml3d import HumanML3D, joint_positions
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.objectives.motion import Goal, Integrated, Obstacle
from lightning_guide.objectives.operators import (
    Blurred,
    Boxed,
    Compressed,
    Downsampled,
    Masked,
    Matrix,
    Operator,
)
from lightning_guide.objectives.reference import Distance, NetworkDistance, SquaredDistance, Style
from lightning_guide.objectives.regions import Disc, HalfSpace
from lightning_guide.objectives.reward import FileHead, Head, NetworkReward, RandomHead, Reward
from lightning_guide.objectives.spectrum import LinearProblem, Spectrum
from lightning_guide.objectives.synthetic import Linear, NegativeDistance, Quadratic
from lightning_guide.objectives.text import TextMatch

__all__ = [
    "Blurred",
    "Boxed",
    "ClassLabel",
    "ClassLogProbability",
    "Compressed",
    "Decoded",
    "Disc",
    "Distance",
    "Downsampled",
    "Energy",
    "FileHead",
    "Goal",
    "HalfSpace",
    "HumanML3D",
    "Head",
    "Integrated",
    "Linear",
    "LinearProblem",
    "Masked",
    "Matrix",
    "Measurement",
    "NegativeDistance",
    "NegativeEnergy",
    "NegativeReward",
    "NetworkDistance",
    "NetworkReward",
    "Objective",
    "Obstacle",
    "Operator",
    "Quadratic",
    "RandomHead",
    "Reconstructed",
    "Reward",
    "Spectrum",
    "SquaredDistance",
    "Style",
    "TextMatch",
    "TorchFunction",
    "Transformed",
    "WeightedSum",
    "joint_positions",
]
