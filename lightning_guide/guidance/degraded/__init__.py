"""Synthetic degradations of a finished model: denoisers that are worse on purpose, as positive or negative."""

from lightning_guide.guidance.degraded.dropout import SamplingDropout
from lightning_guide.guidance.degraded.noisy_input import NoisyInput

__all__ = ["NoisyInput", "SamplingDropout"]
