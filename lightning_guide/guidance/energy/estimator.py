r"""Estimators of the loss under p(x_0 | x), of which only the mean D is known.

The exact guidance is the gradient of log E[exp(-loss(x_0)) | x]. An estimator evaluates the loss at n points around D
and pools the n values; the base, and the plug-in with the single point D.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_guide.guidance.energy.point import Point
from lightning_guide.recipe import Recorded

__all__ = ["Copies", "Estimator", "PlugIn"]

Copies = Callable[[Tensor], Tensor]
"""clean (B, *) -> n points around it (n, B, *), differentiable; always the same draws."""


class Estimator(Recorded, ABC):
    """Base of the estimators."""

    @abstractmethod
    def draw(self, clean: Tensor, point: Point) -> Copies:
        """Fresh draws for this call, for estimates of the kind of `clean` (B, *)."""

    def pool(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled loss (B,) of `losses` (n, B), and its derivative by each of them (n, B): the mean, and 1 / n."""
        return losses.mean(0), torch.full_like(losses, 1 / len(losses))


class PlugIn(Estimator):
    """loss(D): what DPS, FreeDoM and MPGD do."""

    def draw(self, clean: Tensor, point: Point) -> Copies:
        """The estimate itself; nothing is drawn."""
        return lambda clean: clean[None]
