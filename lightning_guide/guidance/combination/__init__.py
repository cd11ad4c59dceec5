"""How the difference between positive and negative is applied: the plain line and its published variants."""

from lightning_guide.guidance.combination.combination import (
    Branch,
    Combination,
    Combine,
    Pair,
    PairCombination,
    Plain,
    Push,
)

__all__ = ["Branch", "Combination", "Combine", "Pair", "PairCombination", "Plain", "Push"]
