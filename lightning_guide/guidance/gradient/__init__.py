"""Gradient guidance: samples are led up a linearised objective, by look-ahead or naively."""

from lightning_guide.guidance.gradient.gradient_guidance import GradientGuidance
from lightning_guide.guidance.gradient.look_ahead import LookAhead, LookAheadWithoutJacobian
from lightning_guide.guidance.gradient.naive import NaiveGradient
from lightning_guide.guidance.gradient.strengths import (
    ConstantStrength,
    PaperStrength,
    PosteriorStrength,
    Strength,
    Tilt,
)

__all__ = [
    "ConstantStrength",
    "GradientGuidance",
    "LookAhead",
    "LookAheadWithoutJacobian",
    "NaiveGradient",
    "PaperStrength",
    "PosteriorStrength",
    "Strength",
    "Tilt",
]
