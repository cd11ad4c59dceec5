"""Toy distributions with exact density, score or denoiser."""

from __future__ import annotations

from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.distributions.line_mixture import LineMixture
from lightning_guide.distributions.line_sums import Lines, LineSums
from lightning_guide.distributions.subspace import Direction, SubspaceGaussian

__all__ = [
    "Direction",
    "FractalTree",
    "GaussianMixture",
    "LineMixture",
    "LineSums",
    "Lines",
    "SubspaceGaussian",
    "gaussian",
]
