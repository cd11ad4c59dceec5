"""Layers with a low-rank addition to their weight, W + c U V."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_guide.pretrained.lora import Addition

__all__ = ["LowRankSum", "adapt", "remove_last", "sums_of"]


class LowRankSum(nn.Module):
    """W -> W + factor (U V) reshaped, for a `weight` of shape (out, *); U and V are float32."""

    def __init__(self, weight: Tensor, rank: int, factor: float, seed: int) -> None:
        super().__init__()
        size = weight[0].numel()
        generator = torch.Generator().manual_seed(seed)
        self.factor = factor
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        self.down = nn.Parameter(torch.randn(rank, size, generator=generator) / size**0.5)
        self.to(weight.device)

    @torch.no_grad()
    def start(self, addition: Addition) -> None:
        """Take U and V of `addition`, of this rank at most; further rows of V stay random, with zeros in U."""
        r = len(addition.down)
        self.up[:, :r] = addition.up * (addition.factor / self.factor)
        self.down[:r] = addition.down.flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        added = self.factor * (self.up @ self.down).reshape(weight.shape)
        return (weight.to(torch.promote_types(weight.dtype, added.dtype)) + added).to(weight.dtype)


def _linear(layer: Any, x: Tensor) -> Tensor:
    """W x + b + c U (V x) of an adapted linear layer."""
    sums = layer.parametrizations.weight
    y = F.linear(x, sums.original, layer.bias)
    for each in sums:
        y = y + each.factor * F.linear(F.linear(x, each.down.to(x.dtype)), each.up.to(x.dtype))
    return y


def _convolution(layer: Any, x: Tensor) -> Tensor:
    """W * x + b + c U (V * x) of an adapted convolution; V is one of the same kernel."""
    sums = layer.parametrizations.weight
    y = layer._conv_forward(x, sums.original, layer.bias)
    for each in sums:
        kernel = each.down.reshape(-1, *sums.original.shape[1:]).to(x.dtype)
        y = y + each.factor * F.conv2d(layer._conv_forward(x, kernel, None), each.up[:, :, None, None].to(x.dtype))
    return y


def adapt(layer: nn.Module, rank: int, factor: float, seed: int) -> bool:
    """Parametrize the weight of `layer`, if it has `rank` rows and columns or more; return whether it was."""
    stacked = sums_of(layer)
    weight = stacked.original if stacked is not None else layer._parameters.get("weight")
    if weight is None or weight.ndim < 2 or min(len(weight), weight[0].numel()) < rank:
        return False
    kind = type(layer)
    parametrize.register_parametrization(layer, "weight", LowRankSum(weight, rank, factor, seed))
    if kind is nn.Linear:
        type(layer).forward = _linear  # of a class that belongs to this layer and its copies alone
    elif kind is nn.Conv2d and layer.groups == 1:
        type(layer).forward = _convolution
    return True


def remove_last(layer: Any) -> None:
    """Remove the addition that was made last."""
    sums = sums_of(layer)
    if len(sums) > 1:
        del sums[-1]
    else:
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        layer.register_parameter("weight", sums.original)


def sums_of(layer: Any) -> Any:
    """Return the additions to the weight of a layer; None if it has none."""
    sums = layer.parametrizations["weight"] if parametrize.is_parametrized(layer, "weight") else None
    return sums if sums is not None and isinstance(sums[-1], LowRankSum) else None
