"""Losses of regions, half-spaces and discs, for points of any dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.objectives.energy import Energy

__all__ = ["Disc", "HalfSpace"]


class HalfSpace(Energy):
    """Half-space loss max(0, offset - normal . x)^2 / (2 softness^2), zero where normal . x >= offset."""

    normal: Tensor

    def __init__(self, normal: Sequence[float] | Tensor, offset: float = 0.0, *, softness: float = 1.0) -> None:
        """Take the `normal` (d,) into the region; `softness` is the distance outside at which the loss is 1/2.

        Raises:
            ValueError: unless `softness` is positive.
        """
        super().__init__()
        if not softness > 0:
            raise ValueError(f"HalfSpace needs softness > 0, got {softness}")
        self.offset, self.softness = offset, softness
        self.register_buffer("normal", torch.as_tensor(normal, dtype=torch.float64))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of points `x` (B, d)."""
        outside = (self.offset - x @ self.normal.to(x)).clamp(min=0)
        return outside.square() / (2 * self.softness**2)


class Disc(Energy):
    """Disc loss max(0, |x - center| - radius)^2 / (2 softness^2); with `inside` False, of the outside of the disc."""

    center: Tensor

    def __init__(
        self, center: Sequence[float] | Tensor, radius: float, *, softness: float = 1.0, inside: bool = True
    ) -> None:
        """Take `center` (d,) and `radius` of the disc or obstacle, and the `softness` as in `HalfSpace`.

        Raises:
            ValueError: unless `radius` and `softness` are positive.
        """
        super().__init__()
        if not min(radius, softness) > 0:
            raise ValueError(f"Disc needs radius > 0 and softness > 0, got {radius} and {softness}")
        self.radius, self.softness, self.inside = radius, softness, inside
        self.register_buffer("center", torch.as_tensor(center, dtype=torch.float64))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of points `x` (B, d)."""
        beyond = (x - self.center.to(x)).norm(dim=1) - self.radius
        return (beyond if self.inside else -beyond).clamp(min=0).square() / (2 * self.softness**2)
