"""ODE and SDE samplers: Euler, DDIM, ancestral, Heun, DPM-Solver++, SDE, UniPC, DEIS, PLMS, restart, time travel."""

from __future__ import annotations

from lightning_guide.samplers.base import Memory, PredictAt, Sampler
from lightning_guide.samplers.deis import DEIS
from lightning_guide.samplers.dpm_solver import DPMSolver2M
from lightning_guide.samplers.euler import DDIM, Ancestral, Euler, LearnedVariance, ProportionalAncestral
from lightning_guide.samplers.heun import Heun
from lightning_guide.samplers.plms import PLMS
from lightning_guide.samplers.restart import Restart
from lightning_guide.samplers.sde_dpm_solver import SDEDPMSolver2M
from lightning_guide.samplers.time_travel import TimeTravel
from lightning_guide.samplers.unipc import DPMSolver3M, UniPC

__all__ = [
    "Ancestral",
    "DDIM",
    "DEIS",
    "DPMSolver2M",
    "DPMSolver3M",
    "Euler",
    "Heun",
    "LearnedVariance",
    "Memory",
    "PLMS",
    "PredictAt",
    "ProportionalAncestral",
    "Restart",
    "SDEDPMSolver2M",
    "Sampler",
    "TimeTravel",
    "UniPC",
]
