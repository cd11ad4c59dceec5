r"""The average of EDM: exponential, with a half-life that grows with training up to a limit.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 7 and appendix F.2: half-life min(500,000, n / 20) after n
images. While it grows, h = ramp n, this is the power-function average (`ema`) with exponent g = ln(2) / ramp - 1, that
is sigma_rel .063 for ramp = .05; later its width in images stays, and relative to the run it shrinks.
"""

from __future__ import annotations

import math

__all__ = ["half_life_retention", "half_life_width"]


def half_life_retention(previous: int, current: int, *, half_life: float = 500_000, ramp: float = 0.05) -> float:
    """Share 2^(-(current - previous) / min(half_life, ramp previous)) of the old average that survives an update.

    `previous` and `current` are the images seen at the update before and at this one; the first keeps nothing.

    Raises:
        ValueError: unless 0 <= previous <= current and current > 0.
    """
    if not (0 <= previous <= current and current > 0):
        raise ValueError(f"an update of an average must move forward in images, got {previous} -> {current}")
    h = min(half_life, ramp * previous)
    return float(0.5 ** ((current - previous) / h)) if h else 0.0


def half_life_width(images: int, *, half_life: float = 500_000, ramp: float = 0.05) -> float:
    """Relative standard deviation of the profile after `images`, for updates in small steps.

    Of s = images - t, the age of the weights that are averaged: a power profile on [0, T0], T0 = half_life / ramp, with
    the share e^(-k a) and the age a more, k = ln(2) / half_life, a = images - T0 > 0; and k e^(-k s) on [0, a].
    """
    g, k = math.log(2) / ramp - 1, math.log(2) / half_life
    T0 = min(half_life / ramp, images)
    a = images - T0
    left, power, squared = math.exp(-k * a), T0 / (g + 2), T0**2 * 2 / ((g + 2) * (g + 3))  # share, E[s], E[s^2]
    mean = (1 - (1 + k * a) * left) / k + left * (a + power)
    square = (2 - (2 + 2 * k * a + (k * a) ** 2) * left) / k**2 + left * (a**2 + 2 * a * power + squared)
    return math.sqrt(max(square - mean**2, 0.0)) / images
