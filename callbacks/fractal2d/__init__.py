"""Figure of the 2D study of autoguidance: samples, a close-up of trajectories and densities, metric curves."""

from __future__ import annotations

from callbacks.fractal2d.density import DensityMap, KnownDistribution, ReferenceDensity, ViewWindow
from callbacks.fractal2d.figure import FractalFigure
from callbacks.fractal2d.rows import PlottedMethod, ZoomWindow

__all__ = [
    "ZoomWindow",
    "DensityMap",
    "FractalFigure",
    "KnownDistribution",
    "PlottedMethod",
    "ReferenceDensity",
    "ViewWindow",
]
