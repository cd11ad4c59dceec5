"""The weight of a guidance that is written as a config: read, replaced, and searched."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

__all__ = ["interpolates", "refined", "stronger", "weight_of", "with_weight"]

Config = dict[str, Any]


def interpolates(guidance: Config) -> bool:
    """Return whether the weight of `guidance` lies in [0, 1] with 0 as its weakest: that of CFG++."""
    return bool(guidance["class_path"].endswith("PP"))


def weight_of(guidance: Config) -> float:
    """Return the weight of `guidance`, that of its schedule, or the first of several."""
    arguments = guidance["init_args"]
    weight = arguments["weights"][0] if "weights" in arguments else arguments["weight"]
    return float(weight["init_args"]["weight"] if isinstance(weight, dict) else weight)


def with_weight(guidance: Config, weight: float) -> Config:
    """Return a copy of `guidance` with its weight, that of its schedule, or the first of several, replaced."""
    changed = copy.deepcopy(guidance)
    arguments = changed["init_args"]
    if "weights" in arguments:
        arguments["weights"] = [weight, *arguments["weights"][1:]]
    elif isinstance(arguments["weight"], dict):
        arguments["weight"]["init_args"]["weight"] = weight
    else:
        arguments["weight"] = weight
    return changed


def stronger(guidance: Config, factor: float) -> float:
    """Return 1 + factor (w - 1) for the weight w of `guidance`; 1, its largest, for CFG++."""
    return 1.0 if interpolates(guidance) else 1 + factor * (weight_of(guidance) - 1)


def refined(tried: Sequence[float], best: float, *, interpolating: bool = False) -> list[float]:
    """Return the weights to be tried next to the `best` of those `tried`, one below it and one above it.

    Of the strengths s = w - 1 (w if `interpolating`) each is the geometric mean of the best and its neighbor, or, if
    the best is the edge of `tried`, lies one step of the grid outside of it. An interpolating weight is at most 1.
    """
    neutral = 0 if interpolating else 1
    strengths = sorted(weight - neutral for weight in tried)
    at = strengths.index(best - neutral)
    own, first, last = strengths[at], at == 0, at == len(strengths) - 1
    below = own * own / strengths[1] if first else math.sqrt(own * strengths[at - 1])
    above = own * own / strengths[-2] if last else math.sqrt(own * strengths[at + 1])
    found = [float(f"{neutral + strength:.3g}") for strength in (below, above)]
    return [weight for weight in found if weight not in tried and not (interpolating and weight > 1)]
