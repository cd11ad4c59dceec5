"""Guidances whose negative has other attention: replacements of the networks' attention cores."""

from lightning_guide.guidance.attention.identity import IdentityAttention, PerturbedAttentionGuidance

__all__ = ["IdentityAttention", "PerturbedAttentionGuidance"]
