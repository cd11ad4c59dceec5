"""Models from elsewhere, read without trusting them, and ours for other tools."""

from __future__ import annotations

from lightning_guide.runs.edm2_pickle import Stored
from lightning_guide.runs.models import DryRunModels, LiveAverages, RunModels

__all__ = ["LiveAverages", "DryRunModels", "RunModels", "Stored"]
