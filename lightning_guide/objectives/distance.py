"""The concave objective f2 of the gradient-guidance paper: nearness to a point that may lie off the data's support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_guide.objectives.objective import Objective, check_shape

__all__ = ["NegativeDistance"]


class NegativeDistance(Objective):
    """f2 = top - slope |x - b|; top = 5, slope = 1/2, b = (4, ..., 4) in https://arxiv.org/abs/2404.14743."""

    b: Tensor

    def __init__(self, b: float | Sequence[Any] | Tensor = 4.0, *, top: float = 5.0, slope: float = 0.5) -> None:
        """`b` (*data_shape), or one number for all coordinates.

        Raises:
            ValueError: if `slope` is not positive.
        """
        super().__init__()
        if not slope > 0:
            raise ValueError(f"NegativeDistance needs slope > 0, got {slope}")
        self.top, self.slope = top, slope
        self.register_buffer("b", torch.as_tensor(b, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """f2 (B,) of `x` (B, *data_shape).

        Raises:
            ValueError: if x has another shape than b.
        """
        if self.b.ndim:
            check_shape(self, tuple(self.b.shape), x)
        return self.top - self.slope * (x - self.b.to(x)).flatten(1).norm(dim=1)
