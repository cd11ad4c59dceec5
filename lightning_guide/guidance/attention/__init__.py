"""Guidances whose negative has other attention: replacements of the networks' attention cores."""

from lightning_guide.guidance.attention.blurred_map import BlurredAttention, BlurredAttentionGuidance
from lightning_guide.guidance.attention.blurred_queries import BlurredQueries, SmoothedEnergyGuidance
from lightning_guide.guidance.attention.identity import (
    IdentityAttention,
    PerturbedAttentionGuidance,
    SoftIdentityAttention,
    SoftPerturbedAttentionGuidance,
)
from lightning_guide.guidance.attention.masks import (
    OffDiagonalMask,
    OffDiagonalMaskGuidance,
    RandomMask,
    RandomMaskGuidance,
)
from lightning_guide.guidance.attention.noisy_map import NoisyAttention, NoisyAttentionGuidance
from lightning_guide.guidance.attention.scaled_queries import EntropyRectifyingGuidance, ScaledQueries
from lightning_guide.guidance.attention.skipped import SkipAttention, SkipAttentionGuidance

__all__ = [
    "BlurredAttention",
    "BlurredAttentionGuidance",
    "BlurredQueries",
    "EntropyRectifyingGuidance",
    "IdentityAttention",
    "NoisyAttention",
    "NoisyAttentionGuidance",
    "OffDiagonalMask",
    "OffDiagonalMaskGuidance",
    "PerturbedAttentionGuidance",
    "RandomMask",
    "RandomMaskGuidance",
    "ScaledQueries",
    "SkipAttention",
    "SkipAttentionGuidance",
    "SmoothedEnergyGuidance",
    "SoftIdentityAttention",
    "SoftPerturbedAttentionGuidance",
]
