"""Particle samplers by an energy: best of N, Feynman-Kac steering, twisted diffusion (TDS)."""

from __future__ import annotations

from lightning_guide.guidance.particles.base import ParticleSampler
from lightning_guide.guidance.particles.best_of_n import BestOfN
from lightning_guide.guidance.particles.feynman_kac import FeynmanKac
from lightning_guide.guidance.particles.tds import TDS

__all__ = ["BestOfN", "FeynmanKac", "ParticleSampler", "TDS"]
