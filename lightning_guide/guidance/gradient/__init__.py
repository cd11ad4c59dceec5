"""Gradient guidance toward a linearized objective, by look-ahead or naively (Guo et al. 2024)."""

from __future__ import annotations

from lightning_guide.guidance.gradient.base import GradientGuidance, Linearization
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
    "Linearization",
    "LookAhead",
    "LookAheadWithoutJacobian",
    "NaiveGradient",
    "PaperStrength",
    "PosteriorStrength",
    "Slope",
    "Strength",
    "Tilt",
]
