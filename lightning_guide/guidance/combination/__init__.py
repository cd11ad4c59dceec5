"""How the difference between positive and negative is applied: the plain line and its published variants."""

from lightning_guide.guidance.combination.adaptive_projection import AdaptiveProjection
from lightning_guide.guidance.combination.beta_weighted import BetaWeighted
from lightning_guide.guidance.combination.combination import Branch, Combination, Combine, Plain
from lightning_guide.guidance.combination.frequency_decoupled import FrequencyDecoupled
from lightning_guide.guidance.combination.magnitude_aware import MagnitudeAware
from lightning_guide.guidance.combination.pair import Pair, PairCombination, Push
from lightning_guide.guidance.combination.rectified_gradient import RectifiedGradient
from lightning_guide.guidance.combination.renoise_with_negative import RenoiseWithNegative
from lightning_guide.guidance.combination.rescale import Rescale
from lightning_guide.guidance.combination.tangential import Tangential
from lightning_guide.guidance.combination.zero_star import ZeroStar

__all__ = [
    "AdaptiveProjection",
    "BetaWeighted",
    "Branch",
    "Combination",
    "Combine",
    "FrequencyDecoupled",
    "MagnitudeAware",
    "Pair",
    "PairCombination",
    "Plain",
    "Push",
    "RectifiedGradient",
    "RenoiseWithNegative",
    "Rescale",
    "Tangential",
    "ZeroStar",
]
