"""Gradient guidance: samples are led up a linearised objective, by look-ahead or naively."""

from __future__ import annotations

from lightning_guide.guidance.gradient.base import GradientGuidance, Linearisation
from lightning_guide.guidance.gradient.look_ahead import LookAhead, LookAheadWithoutJacobian
from lightning_guide.guidance.gradient.naive import NaiveGradient
from lightning_guide.guidance.gradient.strengths import (
    ConstantStrength,
    PaperStrength,
    PosteriorStrength,
    Slope,
    Strength,
    Tilt,
)

__all__ = [
    "ConstantStrength",
    "GradientGuidance",
    "Linearisation",
    "LookAhead",
    "LookAheadWithoutJacobian",
    "NaiveGradient",
    "PaperStrength",
    "PosteriorStrength",
    "Slope",
    "Strength",
    "Tilt",
]
