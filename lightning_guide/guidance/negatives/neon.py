"""Neon: negative guidance in weight space, with no extra evaluations, https://arxiv.org/abs/2510.03597.

theta = (1 + omega) theta_base - omega theta_aux, with theta_aux the base after some training on its own samples. Any
worse model of the same architecture can be used as the auxiliary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.guidance.base import Main, Reference, Unresolved
from lightning_guide.utils.modules import require_weights

__all__ = ["Neon", "extrapolate"]


class Neon(Reference):
    """Neon, the network with weights theta_aux + w (theta_base - theta_aux). One evaluation; w = 1 is the base."""

    def __init__(self, auxiliary: Denoiser, weight: float = 2.0, *, base: Denoiser | None = None) -> None:
        """`auxiliary` is usually a `Snapshot`; `base` the model under evaluation by default; omega is w - 1.

        Raises:
            ValueError: if `weight` is not finite.
        """
        super().__init__()
        if not math.isfinite(weight):
            raise ValueError(f"Neon needs a finite weight, 1 is the base, got {weight}")
        self.auxiliary, self.weight = auxiliary, weight
        self.base = base if base is not None else Main()

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D of the extrapolated weights, computed anew in each call."""
        return self.resolve(Unresolved())(x, sigma, condition)

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if the weights are those of the base."""
        if self.weight == 1:
            yield "Neon with the weight 1 is its base"

    def resolve(self, models: Models) -> Denoiser:
        """Return a separate network with the extrapolated weights.

        Raises:
            ValueError: if the two models do not have the same parameters.
        """
        return extrapolate(self.base.resolve(models), self.auxiliary.resolve(models), self.weight)


@torch.no_grad()
def extrapolate(base: Denoiser, auxiliary: Denoiser, weight: float) -> Denoiser:
    """Return a copy of `base` with parameters aux + `weight` (base - aux); buffers are those of the base.

    Low-rank additions are merged first.

    Raises:
        ValueError: if one of them has no parameters, naming the first one that one of them lacks, or has in another
            shape, or if weights are offloaded.
    """
    merged = copy.deepcopy(base.merged)
    for role, each in (("base", merged), ("auxiliary", auxiliary)):
        require_weights(each, "Neon")
        if next(each.parameters(), None) is None:
            kind = type(each).__name__
            raise ValueError(
                f"Neon merges weights; its {role}, a {kind}, has none; expected a network, as {role}=model"
            )
    other = dict(auxiliary.merged.named_parameters())
    for name, parameter in merged.named_parameters():
        if name not in other or other[name].shape != parameter.shape:
            found = tuple(other[name].shape) if name in other else "missing"
            raise ValueError(
                f"Neon merges models of one architecture: {name} has shape {tuple(parameter.shape)} in the base and is "
                f"{found} in the auxiliary"
            )
        parameter.copy_(torch.lerp(other.pop(name).to(parameter), parameter, weight))
    if other:
        raise ValueError(f"Neon merges models of one architecture: the base has no parameter {next(iter(other))}")
    return merged
