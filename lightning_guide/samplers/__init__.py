"""Samplers: from noise to samples, by following a denoiser down a grid of noise levels."""

from lightning_guide.samplers.ancestral import DDIM, Ancestral, FixedShare
from lightning_guide.samplers.dpm_solver import DPMSolver2M
from lightning_guide.samplers.euler import Euler
from lightning_guide.samplers.heun import Heun
from lightning_guide.samplers.sampler import Sampler
from lightning_guide.samplers.time_travel import TimeTravel

__all__ = ["DDIM", "Ancestral", "DPMSolver2M", "Euler", "FixedShare", "Heun", "Sampler", "TimeTravel"]
