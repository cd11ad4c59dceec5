"""Run folders: models, averages, samples and evaluations of a run; runs made of imported models."""

from __future__ import annotations

from lightning_guide.runs.edm2_pickle import Stored
from lightning_guide.runs.models import (
    DryRunModels,
    LiveAverages,
    RunModels,
    finished_model,
    open_snapshots,
    pretrained,
)
from lightning_guide.runs.run import Run
from lightning_guide.runs.sampling import sample

__all__ = [
    "DryRunModels",
    "LiveAverages",
    "Run",
    "RunModels",
    "Stored",
    "finished_model",
    "open_snapshots",
    "pretrained",
    "sample",
]
