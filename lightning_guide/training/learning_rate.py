"""Learning rate schedules as functions of the images seen, and the Adam optimizer of EDM2.

Inverse square root decay after a ramp: Karras et al. 2024 (EDM2), https://arxiv.org/abs/2312.02696, equation 67; Adam
with betas 0.9 and 0.99: section 2. Linear cooldown at the end of a run: Zhai et al. 2022,
https://arxiv.org/abs/2106.04560.
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
    """Base of the schedules: a learning rate as a function of images seen."""

    @abstractmethod
    def at(self, images: int) -> float:
        """Return the rate of the step that starts after `images` images."""


class InverseSqrtRate(LearningRate):
    """Inverse square root decay after a ramp (EDM2): peak / sqrt(max(n / decay_images, 1)) * min(n / rampup_images, 1).

    n is the number of images seen. EDM2 gives decay_images as reference batches times the batch size; its ramp is 10
    million images, and the first step has rate 0.

    Examples:
        >>> rate = InverseSqrtRate(0.01, decay_images=1000, rampup_images=100)
        >>> [rate.at(images) for images in (0, 50, 100, 1000, 4000)]
        [0.0, 0.005, 0.01, 0.01, 0.005]
    """

    def __init__(self, peak: float = 0.01, *, decay_images: float = math.inf, rampup_images: float = 0.0) -> None:
        """Configure the reference rate `peak`, the start of the decay and the ramp (`rampup_images` = 0: no ramp)."""
        if not (peak > 0 and decay_images > 0 and rampup_images >= 0):
            raise ValueError(
                "InverseSqrtRate needs peak > 0, decay_images > 0 and rampup_images >= 0, "
                f"got {peak}, {decay_images} and {rampup_images}"
            )
        self.peak, self.decay_images, self.rampup_images = peak, decay_images, rampup_images

    def at(self, images: int) -> float:
        """Return the rate after `images` images."""
        ramp = min(images / self.rampup_images, 1.0) if self.rampup_images else 1.0
        return self.peak / math.sqrt(max(images / self.decay_images, 1.0)) * ramp


class ConstantRate(LearningRate):
    """Constant rate `peak` after a linear ramp over `rampup_images` (EDM)."""

    def __init__(self, peak: float = 1e-3, *, rampup_images: float = 0.0) -> None:
        """Configure the rate `peak` and the ramp (`rampup_images` = 0: no ramp)."""
        self.peak, self.rate = peak, InverseSqrtRate(peak, rampup_images=rampup_images)

    def at(self, images: int) -> float:
        """Return the rate after `images` images."""
        return self.rate.at(images)


class Cooldown(LearningRate):
    """Linear cooldown of another rate: its factor falls from 1 after `begin` images to 0 after `end`.

    Examples:
        >>> rate = Cooldown(ConstantRate(0.5), begin=600, end=1000)
        >>> [rate.at(images) for images in (0, 600, 800, 1000)]
        [0.5, 0.5, 0.25, 0.0]
    """

    def __init__(self, rate: LearningRate, begin: int, end: int) -> None:
        """Configure the cooldown of `rate` from `begin` to `end`, the length of the run, in images.

        Raises:
            ValueError: unless 0 <= begin < end.
        """
        if not 0 <= begin < end:
            raise ValueError(f"Cooldown needs 0 <= begin < end in images, got begin={begin} and end={end}")
        self.rate, self.begin, self.end = rate, begin, end

    def at(self, images: int) -> float:
        """Return the rate after `images` images."""
        return self.rate.at(images) * min(max((self.end - images) / (self.end - self.begin), 0.0), 1.0)


def adam(*, scaled: bool = False, elements: int = 1) -> Callable[[Any], torch.optim.Optimizer]:
    """Return a function that builds Adam(betas=(0.9, 0.99), eps=1e-8 / elements), fused unless losses are `scaled`.

    Published losses are sums over the `elements` of an example, ours are means, so that their gradients are smaller by
    that factor. With the smaller eps the steps are the same.

    With a scaled loss, as in float16, PyTorch's fused step undoes the scaling itself: all that comes before it, such as
    clipping, would see scaled gradients.
    """

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        kinds: tuple[list[nn.Parameter], ...] = ([], [])  # a fused step cannot mix sharded and unsharded weights
        for parameter in parameters:
            kinds[isinstance(parameter, DTensor)].append(parameter)
        groups = [{"params": kind} for kind in kinds if kind]
        return torch.optim.Adam(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8 / elements, fused=not scaled)

    return make
