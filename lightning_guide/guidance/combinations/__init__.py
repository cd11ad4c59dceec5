"""Combinations of positive and negative predictions: the plain rule and its published variants."""

from __future__ import annotations

from lightning_guide.guidance.combinations.ag import UntilAgreement
from lightning_guide.guidance.combinations.apg import AdaptiveProjection
from lightning_guide.guidance.combinations.base import Combination, Pair, PairCombination, Plain
from lightning_guide.guidance.combinations.beta_cfg import BetaWeighted
from lightning_guide.guidance.combinations.cfg_rescale import Rescale
from lightning_guide.guidance.combinations.cfg_zero_star import ZeroStar
from lightning_guide.guidance.combinations.fdg import FrequencyDecoupled
from lightning_guide.guidance.combinations.mambo_g import MagnitudeAware
from lightning_guide.guidance.combinations.perp_neg import PerpendicularNegatives
from lightning_guide.guidance.combinations.reg import RectifiedGradient
from lightning_guide.guidance.combinations.reuse import ReusedDifference
from lightning_guide.guidance.combinations.smc_cfg import SlidingMode
from lightning_guide.guidance.combinations.tcfg import Tangential

__all__ = [
    "AdaptiveProjection",
    "BetaWeighted",
    "Combination",
    "FrequencyDecoupled",
    "MagnitudeAware",
    "Pair",
    "PairCombination",
    "PerpendicularNegatives",
    "Plain",
    "RectifiedGradient",
    "Rescale",
    "ReusedDifference",
    "SlidingMode",
    "Tangential",
    "UntilAgreement",
    "ZeroStar",
]
