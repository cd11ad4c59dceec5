"""Samples that a guidance drove out of all bounds."""

from __future__ import annotations

from torch import Tensor

__all__ = ["exploded"]

_LIMIT = 100.0


def exploded(x: Tensor, sigma_data: float) -> Tensor:
    """Which of the samples `x` (B, *) are not finite or reach beyond 100 standard deviations of the data; bool (B,)."""
    largest = x.flatten(1).abs().amax(1)
    return ~(largest <= _LIMIT * sigma_data)  # true for NaN, too
