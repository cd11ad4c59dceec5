"""Lightning callbacks: weight averages, snapshots, checkpoints, graceful stops; sample grids, figures and reports."""

from __future__ import annotations

from callbacks import diagnostics, fractal2d
from callbacks.base import EvaluationSamples, ResolvedGuidances
from callbacks.checkpoint import RunCheckpoint
from callbacks.diagnostics import *
from callbacks.execution import TrainingOptimizations
from callbacks.fractal2d import *
from callbacks.gallery import Gallery
from callbacks.graceful_stop import GracefulStop
from callbacks.half_life_ema import HalfLifeEMA
from callbacks.metrics_report import MetricsReport
from callbacks.motion_figure import MotionFigure
from callbacks.post_hoc_ema import PostHocEMA
from callbacks.progress import NamedProgress
from callbacks.round_strips import RoundStrips
from callbacks.run_lock import RunLock
from callbacks.run_report import RunReport
from callbacks.sample_formats import NpzArchive, PngFolder, SampleFormat, TarShards
from callbacks.sample_grid import SampleGrid
from callbacks.sample_writer import SampleWriter
from callbacks.snapshot_schedule import BudgetSnapshots, EarlySnapshots
from callbacks.weight_curves import WeightCurves

__all__ = [
    "BudgetSnapshots",
    "EarlySnapshots",
    "EvaluationSamples",
    "TrainingOptimizations",
    "Gallery",
    "HalfLifeEMA",
    "MetricsReport",
    "NpzArchive",
    "MotionFigure",
    "NamedProgress",
    "PngFolder",
    "PostHocEMA",
    "ResolvedGuidances",
    "RoundStrips",
    "RunCheckpoint",
    "RunLock",
    "RunReport",
    "SampleFormat",
    "SampleGrid",
    "SampleWriter",
    "GracefulStop",
    "TarShards",
    "WeightCurves",
]
__all__ += diagnostics.__all__
__all__ += fractal2d.__all__
