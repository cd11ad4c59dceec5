"""A linear objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_guide.objectives.objective import Objective, check_shape
from lightning_guide.toys.subspace import Direction

__all__ = ["Linear"]


class Linear(Objective):
    """f = theta^T x."""

    theta: Tensor

    def __init__(self, theta: Sequence[Any] | Tensor | Direction) -> None:
        """`theta` (*data_shape), or a `Direction` relative to a subspace."""
        super().__init__()
        vector = theta.vector if isinstance(theta, Direction) else torch.as_tensor(theta, dtype=torch.float64)
        self.register_buffer("theta", vector)

    def forward(self, x: Tensor) -> Tensor:
        """f (B,) of `x` (B, *data_shape).

        Raises:
            ValueError: if x has another shape than theta.
        """
        check_shape(self, tuple(self.theta.shape), x)
        return (self.theta.to(x) * x).flatten(1).sum(1)
