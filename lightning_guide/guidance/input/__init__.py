"""Guidances whose negative has another input: blurred where the network looks, or seen through windows."""

from lightning_guide.guidance.input.attention_mask import AttentionMask
from lightning_guide.guidance.input.masks import Everywhere, HighFrequency, Mask, RandomPixels, RandomSquare
from lightning_guide.guidance.input.saliency import SaliencyMask
from lightning_guide.guidance.input.self_attention import BlurredInput, SelfAttentionGuidance
from lightning_guide.guidance.input.sliding_window import (
    MaskedSlidingWindow,
    MaskedSlidingWindowGuidance,
    SlidingWindow,
    SlidingWindowGuidance,
)

__all__ = [
    "AttentionMask",
    "BlurredInput",
    "Everywhere",
    "HighFrequency",
    "Mask",
    "MaskedSlidingWindow",
    "MaskedSlidingWindowGuidance",
    "RandomPixels",
    "RandomSquare",
    "SaliencyMask",
    "SelfAttentionGuidance",
    "SlidingWindow",
    "SlidingWindowGuidance",
]
