"""Adam as a step rule. Belardi et al. 2026 (AdamDPS); Kingma and Ba 2015, https://arxiv.org/abs/1412.6980."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.guidance.energy.point import Point
from lightning_guide.guidance.energy.schedules import PowerLaw, Schedule
from lightning_guide.guidance.energy.step_rule import Descend, StepRule

__all__ = ["Adam"]


class Adam(StepRule):
    """-rate c m / (sqrt(v) + epsilon) with bias-corrected moments m, v of h g and h^2 g^2, elementwise.

    m <- beta1 m + (1 - beta1) h g, v <- beta2 v + (1 - beta2) h^2 g^2. The moments live as long as the descent: the
    whole trajectory for a gradient through the denoiser, its repetitions under time travel included.
    """

    def __init__(
        self,
        rate: float,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        schedule: Schedule | None = None,
        gradient_schedule: Schedule | None = None,
    ) -> None:
        """`schedule` c of the step and `gradient_schedule` h of the gradients; default 1.

        Raises:
            ValueError: if a beta is not in [0, 1).
        """
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"Adam needs beta1 and beta2 in [0, 1), got {beta1} and {beta2}")
        self.rate, self.beta1, self.beta2, self.epsilon = rate, beta1, beta2, epsilon
        self.schedule, self.gradient_schedule = schedule or PowerLaw(), gradient_schedule or PowerLaw()

    def start(self) -> Descend:
        """Moments of zero."""
        moments: list[Tensor] = []
        count = 0

        def descend(g: Tensor, loss: Tensor, point: Point) -> Tensor:
            nonlocal count
            h = g * self.gradient_schedule.at(point)
            m, v = moments or (torch.zeros_like(h), torch.zeros_like(h))
            m, v, count = torch.lerp(h, m, self.beta1), torch.lerp(h * h, v, self.beta2), count + 1
            moments[:] = [m, v]
            m, v = m / (1 - self.beta1**count), v / (1 - self.beta2**count)
            return m / (v.sqrt() + self.epsilon) * (-self.rate * self.schedule.at(point))

        return descend
