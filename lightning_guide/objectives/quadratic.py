"""The concave quadratic objective f1 of the gradient-guidance paper: flat in all directions but one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_guide.objectives.linear import Linear
from lightning_guide.toys.subspace import Direction

__all__ = ["Quadratic"]


class Quadratic(Linear):
    """f1 = top - (theta^T x - peak)^2; top = 10 and peak = 3 in https://arxiv.org/abs/2404.14743."""

    def __init__(self, theta: Sequence[Any] | Tensor | Direction, *, peak: float = 3.0, top: float = 10.0) -> None:
        """`theta` (*data_shape) or a `Direction`; `top` is reached where theta^T x = `peak`."""
        super().__init__(theta)
        self.peak, self.top = peak, top

    def forward(self, x: Tensor) -> Tensor:
        """f1 (B,) of `x` (B, *data_shape).

        Raises:
            ValueError: if x has another shape than theta.
        """
        return self.top - (super().forward(x) - self.peak) ** 2
