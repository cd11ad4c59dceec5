"""Goal and obstacle losses for trajectories, as in the motion experiments of Shen et al. 2024.

https://arxiv.org/abs/2403.12404, section 5 (motion): |y - x(T)|^2 + sum_i 100 sigmoid(-50 (|x(i) - c|
- r)) for the target y and an obstacle with center c and radius r, of the mean over the joints on the ground plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.objectives.composition import Transformed
from lightning_guide.objectives.energy import Energy

__all__ = ["Goal", "Integrated", "Obstacle", "ground_path"]


def ground_path(x: Tensor) -> Tensor:
    """Return the path (B, 2, frames) of motions `x`, the mean over joints of x and z.

    Motions are (B, 2 joints, frames), alternating x and z, or (B, joints, 3, frames) with the height y.

    Raises:
        ValueError: if `x` has another shape.
    """
    if x.ndim == 4 and x.shape[2] == 3:
        return x[:, :, ::2].mean(1)
    if x.ndim != 3 or x.shape[1] % 2:
        raise ValueError(f"motions have shape {tuple(x.shape[1:])}; expected (2 joints, frames) or (joints, 3, frames)")
    return x.unflatten(1, (-1, 2)).mean(1)


class Integrated(Transformed):
    """Energy of the path meters (x_1 + ... + x_t), for a denoiser of the steps x of a path."""

    def __init__(self, energy: Energy, meters: float = 1.0) -> None:
        """Take the `energy` of paths in meters, and the unit of the steps, `meters`.

        Raises:
            ValueError: unless `meters` is positive.
        """
        super().__init__(energy)
        if not meters > 0:
            raise ValueError(f"Integrated needs meters > 0, got {meters}")
        self.meters = meters

    def transform(self, x: Tensor) -> Tensor:
        """Return the path (B, 2 joints, frames) of steps `x` in meters."""
        return (self.meters * x).cumsum(-1)


class Goal(Energy):
    """Goal loss |goal - x(frame)|^2, in square meters."""

    goal: Tensor

    def __init__(self, goal: Sequence[float] | Tensor, *, frame: int = -1) -> None:
        """Take the `goal` (2,) in meters and its `frame`, by default the last.

        Raises:
            ValueError: if the goal does not have two coordinates.
        """
        super().__init__()
        point = torch.as_tensor(goal, dtype=torch.float64)
        if point.shape != (2,):
            raise ValueError(f"Goal needs two coordinates, got {goal}")
        self.frame = frame
        self.register_buffer("goal", point)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of motions `x` in meters, as `ground_path` takes them."""
        return (ground_path(x)[..., self.frame] - self.goal.to(x)).square().sum(1)


class Obstacle(Energy):
    """Obstacle loss height mean_i sigmoid(-sharpness (|x(i) - center| - radius - margin)).

    It is about `height` times the share of frames inside the obstacle. The mean over the frames is as in the
    published code; the paper states the sum. The code guides with a margin of 0.2 m and evaluates without. Far
    inside and far outside the sigmoid is flat and has no gradient.
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
        """Choose the obstacle, with lengths in meters and `sharpness` per meter.

        Raises:
            ValueError: if the center does not have two coordinates, or radius or sharpness is not positive.
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
        """Return the distance from the center at each frame, (B, frames), in meters."""
        return (ground_path(x) - self.center.to(x)[:, None]).norm(dim=1)

    def hit(self, x: Tensor) -> Tensor:
        """Return whether each path (B,) enters the obstacle at any frame."""
        return (self.distance(x) < self.radius).any(1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of motions `x` in meters, as `ground_path` takes them."""
        depth = self.radius + self.margin - self.distance(x)
        return self.height * (self.sharpness * depth).sigmoid().mean(1)
