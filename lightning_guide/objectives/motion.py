"""Where a walker ends, and what stands in the way: losses of the motion experiments of Shen et al.

Shen et al. 2024, https://arxiv.org/abs/2403.12404, section 5 (motion): |y - x(T)|^2 + sum_i 100 sigmoid(-50 (|x(i) - c|
- r)) for the target y and an obstacle with center c and radius r, of the mean over the joints on the ground plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.objectives.energy import Energy

__all__ = ["Goal", "Integrated", "Obstacle", "ground_path"]


def ground_path(x: Tensor) -> Tensor:
    """The path (B, 2, frames) of motions `x` (B, 2 joints, frames): the mean over the joints, (x, z) after (x, z).

    Raises:
        ValueError: if these are no such motions.
    """
    if x.ndim != 3 or x.shape[1] % 2:
        raise ValueError(f"motions have shape {tuple(x.shape[1:])}; expected (2 joints, frames)")
    return x.unflatten(1, (-1, 2)).mean(1)


class Integrated(Energy):
    """The loss of the path meters (x_1 + ... + x_t), for a denoiser that sees the steps x of a path."""

    def __init__(self, energy: Energy, meters: float = 1.0) -> None:
        """`energy` of paths in meters; `meters` is the unit of the steps.

        Raises:
            ValueError: unless `meters` is positive.
        """
        super().__init__()
        if not meters > 0:
            raise ValueError(f"Integrated needs meters > 0, got {meters}")
        self.energy, self.meters = energy, meters

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of steps `x` (B, 2 joints, frames)."""
        loss: Tensor = self.energy((self.meters * x).cumsum(-1), condition)
        return loss


class Goal(Energy):
    """|goal - x(frame)|^2, in square meters."""

    goal: Tensor

    def __init__(self, goal: Sequence[float] | Tensor, *, frame: int = -1) -> None:
        """`goal` (2,) in meters, and the `frame` at which to be there; default: the last.

        Raises:
            ValueError: if the goal is no point of the plane.
        """
        super().__init__()
        point = torch.as_tensor(goal, dtype=torch.float64)
        if point.shape != (2,):
            raise ValueError(f"Goal needs two coordinates, got {goal}")
        self.frame = frame
        self.register_buffer("goal", point)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of paths `x` (B, 2 joints, frames) in meters."""
        return (ground_path(x)[..., self.frame] - self.goal.to(x)).square().sum(1)


class Obstacle(Energy):
    """height mean_i sigmoid(-sharpness (|x(i) - center| - radius - margin)): about `height` x the share of hits.

    The mean over the frames is that of the published code, the paper prints the sum; the code guides with a margin of
    .2 m and evaluates without. Well inside, and well outside, the sigmoid is flat and guides nowhere.
    """

    center: Tensor

    def __init__(
        self,
        center: Sequence[float] | Tensor,
        radius: float = 1.0,
        *,
        margin: float = 0.0,
        sharpness: float = 50.0,
        height: float = 100.0,
    ) -> None:
        """Lengths in meters, `sharpness` per meter.

        Raises:
            ValueError: if the center is no point of the plane, or radius or sharpness are not positive.
        """
        super().__init__()
        point = torch.as_tensor(center, dtype=torch.float64)
        if point.shape != (2,) or not min(radius, sharpness) > 0:
            raise ValueError(
                f"Obstacle needs a center of two coordinates and positive radius and sharpness, got {center}, {radius} "
                f"and {sharpness}"
            )
        self.radius, self.margin, self.sharpness, self.height = radius, margin, sharpness, height
        self.register_buffer("center", point)

    def distance(self, x: Tensor) -> Tensor:
        """Meters from the center at each frame, (B, frames)."""
        return (ground_path(x) - self.center.to(x)[:, None]).norm(dim=1)

    def hit(self, x: Tensor) -> Tensor:
        """Whether the path (B,) enters the obstacle at any frame."""
        return (self.distance(x) < self.radius).any(1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of paths `x` (B, 2 joints, frames) in meters."""
        deep = self.radius + self.margin - self.distance(x)
        return self.height * (self.sharpness * deep).sigmoid().mean(1)
