"""diagnostics."""

from __future__ import annotations

from callbacks.diagnostics.accumulated_gradients import AccumulatedGradients
from callbacks.diagnostics.gradient_cosines import GradientCosines
from callbacks.diagnostics.loss_curves import LossCurves
from callbacks.diagnostics.trajectories import GuidedWalks, Walk

__all__ = ["AccumulatedGradients", "GradientCosines", "GuidedWalks", "LossCurves", "Walk"]
