"""ODE and SDE samplers: Euler, DDIM and ancestral sampling, Heun, DPM-Solver++(2M), PLMS, time travel."""

from __future__ import annotations

from lightning_guide.samplers.base import Memory, PredictAt, Sampler
from lightning_guide.samplers.dpm_solver import DPMSolver2M
from lightning_guide.samplers.euler import DDIM, Ancestral, Euler, LearnedVariance, ProportionalAncestral
from lightning_guide.samplers.heun import Heun
from lightning_guide.samplers.plms import PLMS
from lightning_guide.samplers.time_travel import TimeTravel

__all__ = [
    "Ancestral",
    "DDIM",
    "DPMSolver2M",
    "Euler",
    "Heun",
    "LearnedVariance",
    "Memory",
    "PLMS",
    "PredictAt",
    "ProportionalAncestral",
    "Sampler",
    "TimeTravel",
]
