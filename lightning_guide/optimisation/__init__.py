"""Optimisation by sampling: rounds of samples, what each tells the guidance of the next, and what is replayed."""

from lightning_guide.optimisation.replay import GeometricReplay, LatestOnly, Replay, UniformReplay
from lightning_guide.optimisation.rounds import Rounds
from lightning_guide.optimisation.targets import Gain, Goal, Target

__all__ = ["Gain", "GeometricReplay", "Goal", "LatestOnly", "Replay", "Rounds", "Target", "UniformReplay"]
