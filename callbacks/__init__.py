"""Callbacks: averages, snapshots, checkpoints and clean stops of a run; grids, figures, reports and samples."""

from callbacks.accumulated_gradients import AccumulatedGradients
from callbacks.budget_snapshots import BudgetSnapshots
from callbacks.early_snapshots import EarlySnapshots
from callbacks.execution import Execution
from callbacks.fractal_figure import FractalFigure
from callbacks.gallery import Gallery
from callbacks.gradient_cosines import GradientCosines
from callbacks.half_life_ema import HalfLifeEMA
from callbacks.loss_curves import LossCurves
from callbacks.metrics_report import MetricsReport
from callbacks.path_figure import PathFigure
from callbacks.post_hoc_ema import PostHocEMA
from callbacks.round_strips import RoundStrips
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.run_report import RunReport
from callbacks.sample_grid import SampleGrid
from callbacks.sample_writer import SampleWriter
from callbacks.stop_cleanly import StopCleanly
from callbacks.weight_curves import WeightCurves

__all__ = [
    "AccumulatedGradients",
    "BudgetSnapshots",
    "EarlySnapshots",
    "Execution",
    "FractalFigure",
    "Gallery",
    "GradientCosines",
    "HalfLifeEMA",
    "LossCurves",
    "MetricsReport",
    "PathFigure",
    "PostHocEMA",
    "RoundStrips",
    "RunCheckpoint",
    "RunReport",
    "SampleGrid",
    "SampleWriter",
    "StopCleanly",
    "WeightCurves",
]
