"""The optimizer of EDM2: Adam with betas .9 and .99, the learning rate set before each step.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

__all__ = ["adam"]


def adam(*, scaled: bool = False) -> Callable[[Any], torch.optim.Optimizer]:
    """Makes Adam(betas=(0.9, 0.99)) of parameters, in one pass over all of them a step unless losses are `scaled`.

    With the loss scaled, as in float16, PyTorch's fused step undoes the scaling itself, after gradients that are not
    finite have been set to zero: it would never learn that the scale is too large.
    """

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        sides: tuple[list[nn.Parameter], ...] = ([], [])  # one pass cannot take sharded and whole ones together
        for parameter in parameters:
            sides[isinstance(parameter, DTensor)].append(parameter)
        groups = [{"params": side} for side in sides if side]
        return torch.optim.Adam(groups, lr=1e-3, betas=(0.9, 0.99), fused=not scaled)

    return make
