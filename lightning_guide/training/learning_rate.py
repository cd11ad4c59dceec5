"""Learning rates as functions of the images seen.

Karras et al. 2024 (EDM2), https://arxiv.org/abs/2312.02696, equation 67: inverse square root decay after a ramp.
Linear cooldown at the end of a run: Zhai et al. 2022, https://arxiv.org/abs/2106.04560.

The optimizer of EDM2: Adam with betas .9 and .99, the learning rate set before each step.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

__all__ = ["ConstantRate", "Cooldown", "InverseSqrtRate", "LearningRate", "adam"]


class LearningRate(ABC):
    """A learning rate that depends on training time."""

    @abstractmethod
    def at(self, images: int) -> float:
        """The rate of the step that starts after `images` images."""


class InverseSqrtRate(LearningRate):
    """peak / sqrt(max(n / decay_images, 1)) * min(n / rampup_images, 1) after n images.

    EDM2 writes decay_images as reference batches times the batch size; its ramp is 10 million images, and the very
    first step has rate 0.
    """

    def __init__(self, peak: float = 0.01, *, decay_images: float = math.inf, rampup_images: float = 0.0) -> None:
        """`peak` is the reference rate; decay begins at `decay_images`; `rampup_images` = 0 means no ramp."""
        if not (peak > 0 and decay_images > 0 and rampup_images >= 0):
            raise ValueError(
                "InverseSqrtRate needs peak > 0, decay_images > 0 and rampup_images >= 0, "
                f"got {peak}, {decay_images} and {rampup_images}"
            )
        self.peak, self.decay_images, self.rampup_images = peak, decay_images, rampup_images

    def at(self, images: int) -> float:
        """The rate after `images` images."""
        ramp = min(images / self.rampup_images, 1.0) if self.rampup_images else 1.0
        return self.peak / math.sqrt(max(images / self.decay_images, 1.0)) * ramp


class ConstantRate(LearningRate):
    """`peak` after a linear ramp over `rampup_images` (EDM)."""

    def __init__(self, peak: float = 1e-3, *, rampup_images: float = 0.0) -> None:
        """`rampup_images` = 0 means no ramp."""
        self.rate = InverseSqrtRate(peak, rampup_images=rampup_images)

    def at(self, images: int) -> float:
        """The rate after `images` images."""
        return self.rate.at(images)


class Cooldown(LearningRate):
    """Another rate, times a factor that falls linearly from 1 after `begin` images to 0 after `end`."""

    def __init__(self, rate: LearningRate, begin: int, end: int) -> None:
        """`rate` holds up to `begin` images; `end` is the length of the run.

        Raises:
            ValueError: if it does not begin before it ends.
        """
        if not 0 <= begin < end:
            raise ValueError(f"Cooldown needs 0 <= begin < end in images, got begin={begin} and end={end}")
        self.rate, self.begin, self.end = rate, begin, end

    def at(self, images: int) -> float:
        """The rate after `images` images."""
        return self.rate.at(images) * min(max((self.end - images) / (self.end - self.begin), 0.0), 1.0)


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
