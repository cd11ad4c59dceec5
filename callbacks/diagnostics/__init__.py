"""Diagnostics of training-free guidance: loss curves, gradient cosines and accumulated gradients."""

from __future__ import annotations

from callbacks.diagnostics.accumulated_gradients import AccumulatedGradients
from callbacks.diagnostics.gradient_cosines import GradientCosines
from callbacks.diagnostics.loss_curves import LossCurves
from callbacks.diagnostics.trajectories import GuidedTrajectories, RecordedTrajectory

__all__ = ["AccumulatedGradients", "GradientCosines", "GuidedTrajectories", "LossCurves", "RecordedTrajectory"]
