r"""Where a walker ends, and what stands in the way: losses of the motion experiments of Shen et al.

Shen et al. 2024, https://arxiv.org/abs/2403.12404, section 5 (motion): |y - x(T)|^2 + sum_i 100 sigmoid(-50 (|x(i) - c|
- r)) for the target y and an obstacle with centre c and radius r, of the mean over the joints on the ground plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.guidance.energy.objectives.objective import Objective

__all__ = ["Obstacle", "Goal", "ground_path"]


def ground_path(x: Tensor) -> Tensor:
    """The path (B, 2, frames) of motions `x` (B, 2 joints, frames): the mean over the joints, (x, z) after (x, z).

    Raises:
        ValueError: if these are no such motions.
    """
    if x.ndim != 3 or x.shape[1] % 2:
        raise ValueError(f"motions have shape {tuple(x.shape[1:])}; expected (2 joints, frames)")
    return x.unflatten(1, (-1, 2)).mean(1)


class Goal(Objective):
    """|goal - x(frame)|^2, in square metres."""

    goal: Tensor

    def __init__(self, goal: Sequence[float] | Tensor, *, metres: float = 1.0, frame: int = -1) -> None:
        """`goal` (2,) in metres, the unit of x in `metres`, and the `frame` at which to be there; default: the last.

        Raises:
            ValueError: if the goal is no point of the plane, or the unit not positive.
        """
        super().__init__()
        point = torch.as_tensor(goal, dtype=torch.float64)
        if point.shape != (2,) or not metres > 0:
            raise ValueError(f"Goal needs a goal of two coordinates and metres > 0, got {goal} and {metres}")
        self.metres, self.frame = metres, frame
        self.register_buffer("goal", point)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of `x` (B, 2 joints, frames)."""
        return (self.metres * ground_path(x)[..., self.frame] - self.goal.to(x)).square().sum(1)


class Obstacle(Objective):
    """height mean_i sigmoid(-sharpness (|x(i) - centre| - radius - margin)): about `height` x the share of hits.

    The mean over the frames is that of the published code, the paper prints the sum; the code guides with a margin of
    .2 m and evaluates without. Well inside, and well outside, the sigmoid is flat and guides nowhere.
    """

    centre: Tensor

    def __init__(
        self,
        centre: Sequence[float] | Tensor,
        radius: float = 1.0,
        *,
        margin: float = 0.0,
        sharpness: float = 50.0,
        height: float = 100.0,
        metres: float = 1.0,
    ) -> None:
        """Lengths in metres, `sharpness` per metre; the unit of x in `metres`.

        Raises:
            ValueError: if the centre is no point of the plane, or radius, sharpness or unit are not positive.
        """
        super().__init__()
        point = torch.as_tensor(centre, dtype=torch.float64)
        if point.shape != (2,) or not min(radius, sharpness, metres) > 0:
            raise ValueError(
                "Obstacle needs a centre of two coordinates and positive radius, sharpness and metres, got "
                f"{centre}, {radius}, {sharpness} and {metres}"
            )
        self.radius, self.margin, self.sharpness, self.height, self.metres = radius, margin, sharpness, height, metres
        self.register_buffer("centre", point)

    def distance(self, x: Tensor) -> Tensor:
        """Metres from the centre at each frame, (B, frames)."""
        return (self.metres * ground_path(x) - self.centre.to(x)[:, None]).norm(dim=1)

    def hit(self, x: Tensor) -> Tensor:
        """Whether the path (B,) enters the obstacle at any frame."""
        return (self.distance(x) < self.radius).any(1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of `x` (B, 2 joints, frames)."""
        deep = self.radius + self.margin - self.distance(x)
        return self.height * (self.sharpness * deep).sigmoid().mean(1)
