"""Guidances whose negative has other attention: replacements of the networks' attention cores."""

from lightning_guide.guidance.attention.blurred_map import BlurredAttention
from lightning_guide.guidance.attention.blurred_queries import BlurredQueries, SmoothedEnergyGuidance
from lightning_guide.guidance.attention.identity import (
    IdentityAttention,
    PerturbedAttentionGuidance,
    SoftIdentityAttention,
)
from lightning_guide.guidance.attention.masks import (
    OffDiagonalMask,
    RandomMask,
)
from lightning_guide.guidance.attention.noisy_map import NoisyAttention
from lightning_guide.guidance.attention.scaled_queries import EntropyRectifyingGuidance, ScaledQueries
from lightning_guide.guidance.attention.skipped import SkipAttention

__all__ = [
    "BlurredAttention",
    "BlurredQueries",
    "EntropyRectifyingGuidance",
    "IdentityAttention",
    "NoisyAttention",
    "OffDiagonalMask",
    "PerturbedAttentionGuidance",
    "RandomMask",
    "ScaledQueries",
    "SkipAttention",
    "SmoothedEnergyGuidance",
    "SoftIdentityAttention",
]
