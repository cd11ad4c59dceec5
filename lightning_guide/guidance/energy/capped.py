"""A trust region around any step rule."""

from __future__ import annotations

from torch import Tensor

from lightning_guide.guidance.energy.point import Point
from lightning_guide.guidance.energy.step_rule import Descend, StepRule, length

__all__ = ["Capped"]


class Capped(StepRule):
    """The step of `rule`, shortened to |step| <= cap sqrt(d) sigma': a share of the noise that the next state holds.

    d is the number of elements of one sample. The last step of a trajectory, to sigma' = 0, has no room at all: what
    is added there no network would ever correct.
    """

    def __init__(self, rule: StepRule, cap: float = 0.3) -> None:
        """`cap`: the share.

        Raises:
            ValueError: unless `cap` is positive.
        """
        if not cap > 0:
            raise ValueError(f"Capped needs cap > 0, got {cap}")
        self.rule, self.cap = rule, cap

    def start(self) -> Descend:
        """The rule, started afresh."""
        inner = self.rule.start()

        def descend(g: Tensor, loss: Tensor, point: Point) -> Tensor:
            step = inner(g, loss, point)
            most = self.cap * step[0].numel() ** 0.5 * point.sigma_next
            return step * (most / length(step)).clamp(max=1)

        return descend
