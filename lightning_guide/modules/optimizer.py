"""The optimizer of EDM2: Adam with betas .9 and .99, the learning rate set before each step.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["adam"]


def adam(*, scaled: bool = False) -> Callable[[Any], torch.optim.Optimizer]:
    """Makes Adam(betas=(0.9, 0.99)) of parameters, in one pass over all of them a step unless losses are `scaled`.

    With the loss scaled, as in float16, PyTorch's fused step undoes the scaling itself, after gradients that are not
    finite have been set to zero: it would never learn that the scale is too large.
    """
    return lambda parameters: torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.99), fused=not scaled)
