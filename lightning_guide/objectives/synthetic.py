"""Synthetic objectives of the gradient-guidance paper, Guo et al. 2024, https://arxiv.org/abs/2404.14743."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_guide.distributions.subspace import Direction
from lightning_guide.objectives.energy import Objective, check_shape
from lightning_guide.objectives.reference import Distance

__all__ = ["Linear", "NegativeDistance", "Quadratic"]


class Linear(Objective):
    """Linear objective f = theta^T x."""

    theta: Tensor

    def __init__(self, theta: Sequence[Any] | Tensor | Direction) -> None:
        """Take `theta` (*data_shape), or a `Direction` relative to a subspace."""
        super().__init__()
        vector = theta.vector if isinstance(theta, Direction) else torch.as_tensor(theta, dtype=torch.float64)
        self.register_buffer("theta", vector)

    def value(self, x: Tensor) -> Tensor:
        """Return f (B,) of `x` (B, *data_shape).

        Raises:
            ValueError: if x has another shape than theta.
        """
        check_shape(self, tuple(self.theta.shape), x)
        return (self.theta.to(x) * x).flatten(1).sum(1)


class Quadratic(Linear):
    """Concave quadratic objective f1 = top - (theta^T x - peak)^2; top = 10 and peak = 3 in the paper."""

    def __init__(self, theta: Sequence[Any] | Tensor | Direction, *, peak: float = 3.0, top: float = 10.0) -> None:
        """Take `theta` (*data_shape) or a `Direction`; the maximum `top` is at theta^T x = `peak`."""
        super().__init__(theta)
        self.peak, self.top = peak, top

    def value(self, x: Tensor) -> Tensor:
        """Return f1 (B,) of `x` (B, *data_shape).

        Raises:
            ValueError: if x has another shape than theta.
        """
        return self.top - (super().value(x) - self.peak) ** 2


class NegativeDistance(Objective, Distance):
    """Concave objective f2 = top - slope |x - b|; top = 5, slope = 1/2 and b = (4, ..., 4) in the paper.

    The point b may lie off the support of the data.
    """

    def __init__(self, b: float | Sequence[Any] | Tensor = 4.0, *, top: float = 5.0, slope: float = 0.5) -> None:
        """Take `b` (*data_shape), or one number for all coordinates.

        Raises:
            ValueError: if `slope` is not positive.
        """
        super().__init__(b)
        if not slope > 0:
            raise ValueError(f"NegativeDistance needs slope > 0, got {slope}")
        self.top, self.slope = top, slope

    def value(self, x: Tensor) -> Tensor:
        """Return f2 (B,) of `x` (B, *data_shape).

        Raises:
            ValueError: if x has another shape than b.
        """
        if self.target.ndim:
            check_shape(self, tuple(self.target.shape), x)
        return self.top - self.slope * Distance.forward(self, x)
