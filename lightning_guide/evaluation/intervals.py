"""Intervals of metrics from their values for random halves of the samples, within the bounds of each metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["QUANTILE", "Estimate", "estimate"]


QUANTILE = 1.959964  # of the normal distribution, for 95 %
SHARES = ("precision", "recall", "coverage", "authenticity", "memorized")
LEAST = {"fd": 0.0, "sfid": 0.0, "mind": 0.0, "density": 0.0, "nearest": 0.0, "vendi": 1.0, "inception_score": 1.0}


@dataclass(frozen=True)
class Estimate:
    """Value of a metric and the ends of its 95 % interval; None without one."""

    value: float
    low: float | None = None
    high: float | None = None


def estimate(name: str, value: float, halves: Sequence[float]) -> Estimate:
    """Return the `value` of the metric `name` with its interval from the values for random halves.

    With s their standard deviation the interval is value +- 1.96 s, cut off at the least value that the metric can
    have. A share p in [0, 1] is turned into the angle arcsin sqrt(p) first, whose noise depends little on p, and the
    ends of its interval, within [0, pi / 2], are turned back: it lies in [0, 1] and is shorter toward a bound.

    Examples:
        >>> halves = [0.95, 0.97, 0.99, 1.0]
        >>> {name: [round(end, 3) for end in (found.low, found.high)]
        ...  for name in ("precision", "kid") if (found := estimate(name, 0.98, halves))}
        {'precision': [0.893, 1.0], 'kid': [0.937, 1.023]}
    """
    if not halves or not all(map(math.isfinite, (value, *halves))):
        return Estimate(value)
    if name in SHARES:
        angle, spread = _angle(value), _spread([_angle(each) for each in halves])
        low, high = (math.sin(min(max(end, 0.0), math.pi / 2)) ** 2 for end in (angle - spread, angle + spread))
    else:
        spread = _spread(halves)
        low, high = max(value - spread, LEAST.get(name, -math.inf)), value + spread
    return Estimate(value, min(low, value), max(high, value))  # whatever is rounded


def _spread(values: Sequence[float]) -> float:
    return QUANTILE * torch.tensor(values, dtype=torch.float64).std().item()


def _angle(share: float) -> float:
    return math.asin(math.sqrt(min(max(share, 0.0), 1.0)))
