r"""Polyak's step size (f - f*) / |g|^2, and what Shen et al. make of it.

Shen et al. 2024, "Understanding and Improving Training-free Loss-based Diffusion Guidance",
https://arxiv.org/abs/2403.12404, algorithm 2.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.guidance.energy.point import Point
from lightning_guide.guidance.energy.schedules import PowerLaw, Schedule
from lightning_guide.guidance.energy.step_rule import Descend, StepRule, length, unit

__all__ = ["Polyak", "TruePolyak"]


class Polyak(StepRule):
    """-rate c |noise| g / |g|^2: the norm of the noise stands in for the unknown gap f - f*.

    c = sqrt((1 + sigma'^2) / (1 + sigma^2)) makes -rate |noise| g_VP / |g_VP|^2 of it in the paper's coordinates.
    The step is inversely proportional to the scale of the loss, which is why published rates go from .001 to 2, and
    grows without bound where the gradient vanishes: use it with `Capped`.
    """

    def __init__(self, rate: float, *, schedule: Schedule | None = None) -> None:
        """`rate` eta; `schedule` c, default as above (1 suits a gradient at the clean estimate)."""
        self.rate, self.schedule = rate, schedule or PowerLaw(scale=-1, scale_next=1)

    def start(self) -> Descend:
        """No state."""

        def descend(g: Tensor, loss: Tensor, point: Point) -> Tensor:
            direction, norm = unit(g)
            return direction * (length(point.noise) / norm) * (-self.rate * self.schedule.at(point))

        return descend


class TruePolyak(StepRule):
    """-rate c (loss - least) g / |g|^2, and nothing once the loss is below `least`.

    c as for `Polyak`. Does not depend on the scale of the loss. For loss = r^2 instead of r the step is half as long.
    """

    def __init__(self, rate: float, *, least: float = 0.0, schedule: Schedule | None = None) -> None:
        """`rate` 1 is Polyak's own; `least` is the smallest value that the loss can take."""
        self.rate, self.least, self.schedule = rate, least, schedule or PowerLaw(scale=-1, scale_next=1)

    def start(self) -> Descend:
        """No state."""

        def descend(g: Tensor, loss: Tensor, point: Point) -> Tensor:
            direction, norm = unit(g)
            gap = (loss - self.least).clamp(min=0).reshape(norm.shape)
            return direction * (gap / norm) * (-self.rate * self.schedule.at(point))

        return descend
