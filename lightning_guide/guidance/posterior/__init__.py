"""Posterior sampling by a linear measurement: the published methods for inverse problems."""

from __future__ import annotations

from lightning_guide.guidance.posterior.base import PosteriorGuidance
from lightning_guide.guidance.posterior.daps import DAPS
from lightning_guide.guidance.posterior.ddnm import DDNM
from lightning_guide.guidance.posterior.ddrm import DDRM
from lightning_guide.guidance.posterior.diffpir import DiffPIR
from lightning_guide.guidance.posterior.mmps import MMPS
from lightning_guide.guidance.posterior.pigdm import PiGDM
from lightning_guide.guidance.posterior.repaint import RePaint
from lightning_guide.guidance.posterior.tmpd import TMPD

__all__ = ["DAPS", "DDNM", "DDRM", "DiffPIR", "MMPS", "PiGDM", "PosteriorGuidance", "RePaint", "TMPD"]
