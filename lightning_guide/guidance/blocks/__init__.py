"""Guidances whose negative lacks whole blocks."""

from lightning_guide.guidance.blocks.skipped import SkipBlocks, SkipLayerGuidance
from lightning_guide.guidance.blocks.stochastic import StochasticSelfGuidance, StochasticSkip

__all__ = ["SkipBlocks", "SkipLayerGuidance", "StochasticSelfGuidance", "StochasticSkip"]
