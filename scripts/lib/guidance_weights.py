"""The weight of a guidance that is written as a config: read, and replaced."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["stronger", "weight_of", "with_weight"]

Config = dict[str, Any]


def weight_of(guidance: Config) -> float:
    """Return the weight of `guidance`, that of its schedule, or the first of several."""
    arguments = guidance["init_args"]
    weight = arguments["weights"][0] if "weights" in arguments else arguments["weight"]
    return float(weight["init_args"]["weight"] if isinstance(weight, dict) else weight)


def with_weight(guidance: Config, weight: float) -> Config:
    """Return a copy of `guidance` with its weight, or that of its schedule, replaced."""
    changed = copy.deepcopy(guidance)
    arguments = changed["init_args"]
    if "weights" in arguments:
        arguments["weights"] = [weight]
    elif isinstance(arguments["weight"], dict):
        arguments["weight"]["init_args"]["weight"] = weight
    else:
        arguments["weight"] = weight
    return changed


def stronger(guidance: Config, factor: float) -> float:
    """Return 1 + factor (w - 1) for the weight w of `guidance`; 1, its largest, for CFG++."""
    return 1.0 if guidance["class_path"].endswith("PP") else 1 + factor * (weight_of(guidance) - 1)
