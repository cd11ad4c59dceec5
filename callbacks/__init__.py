"""Callbacks: averages, snapshots, checkpoints and clean stops of a run."""

from callbacks.early_snapshots import EarlySnapshots
from callbacks.post_hoc_ema import PostHocEMA
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.stop_cleanly import StopCleanly

__all__ = ["EarlySnapshots", "PostHocEMA", "RunCheckpoint", "StopCleanly"]
