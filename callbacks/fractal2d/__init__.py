"""fractal2d."""

from __future__ import annotations

from callbacks.fractal2d.density import DensityMap, KnownDistribution, Truth, Window
from callbacks.fractal2d.figure import FractalFigure
from callbacks.fractal2d.rows import CloseUp, Method

__all__ = ["CloseUp", "DensityMap", "FractalFigure", "KnownDistribution", "Method", "Truth", "Window"]
