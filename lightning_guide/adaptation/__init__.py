"""Models that are fine-tuned in part: by a shift of their mean, or by weights of low rank."""

from lightning_guide.adaptation.low_rank import LowRank
from lightning_guide.adaptation.shifted import MeanRefit, Shifted

__all__ = ["LowRank", "MeanRefit", "Shifted"]
