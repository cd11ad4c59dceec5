"""Optimization by sampling: rounds of guided samples, their feedback and replay, and partially fine-tuned models."""

from __future__ import annotations

from lightning_guide.optimization.contraction import Bound
from lightning_guide.optimization.feedback import Feedback
from lightning_guide.optimization.low_rank import LowRank
from lightning_guide.optimization.mean_shift import MeanRefit, Shifted
from lightning_guide.optimization.replay import GeometricReplay, LatestOnly, Replay, UniformReplay
from lightning_guide.optimization.round_buffers import RoundBuffers
from lightning_guide.optimization.rounds import Rounds
from lightning_guide.optimization.targets import GainTarget, GoalTarget, Target

__all__ = [
    "Bound",
    "Feedback",
    "GainTarget",
    "GeometricReplay",
    "GoalTarget",
    "LatestOnly",
    "LowRank",
    "MeanRefit",
    "Replay",
    "Rounds",
    "Shifted",
    "RoundBuffers",
    "Target",
    "UniformReplay",
]
