r"""Step rules: from a gradient of the loss to a displacement, for each sample by itself.

g is the gradient wherever the move takes it (with respect to x, the clean estimate or a latent), c a schedule, |.| the
norm of one sample. A rule is started for each descent, so that it may keep moments. A sample whose gradient is zero or
not finite, or whose step would not be finite, stays where it is and is counted (see `Landscape.step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from lightning_guide.denoiser import expand
from lightning_guide.guidance.energy.point import Point
from lightning_guide.guidance.energy.schedules import PowerLaw, Schedule
from lightning_guide.recipe import Recorded

__all__ = ["Constant", "Descend", "Normalised", "RootMeanSquare", "StepRule", "length", "unit"]

Descend = Callable[[Tensor, Tensor, Point], Tensor]
"""(gradient (B, *), loss (B,), point) -> displacement (B, *)."""


def unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """v / |v| `(B, *)` and |v| `(B, 1, ...)` for each sample, without overflow; NaN where v is zero."""
    most = expand(v.abs().flatten(1).amax(1), v)
    scaled = v / most
    norm = length(scaled)
    return scaled / norm, most * norm


def length(v: Tensor) -> Tensor:
    """|v| for each sample, `(B, 1, ...)`."""
    return expand(v.flatten(1).norm(dim=1), v)


class StepRule(Recorded, ABC):
    """Base of the rules."""

    @abstractmethod
    def start(self) -> Descend:
        """The rule for one descent, with a fresh state."""


class Constant(StepRule):
    """-rate c g.

    For a gradient with respect to x, c is PowerLaw(2) = sigma^2 for a step along the score (universal guidance, LGD),
    PowerLaw(scale=1, scale_next=1) for DPS, PowerLaw(scale_next=1) for FreeDoM, PowerLaw(scale=2) for TFG.
    """

    def __init__(self, rate: float, *, schedule: Schedule | None = None) -> None:
        """`rate` in the units of the paper that the `schedule` c belongs to; default c = 1."""
        self.rate, self.schedule = rate, schedule or PowerLaw()

    def start(self) -> Descend:
        """No state."""
        return lambda g, loss, point: g * (-self.rate * self.schedule.at(point))


class Normalised(StepRule):
    """-rate c g / |g|. Does not depend on the scale of the loss.

    c = sqrt(1 + sigma'^2) by default: a step of length `rate` in the variance-preserving next state. With `rate` times
    sqrt(d) this is MPGD's rule for faces, rho sqrt(1 + sigma'^2) g / rms(g).
    """

    def __init__(self, rate: float, *, schedule: Schedule | None = None) -> None:
        """`rate`: length of the step, times the `schedule` c."""
        self.rate, self.schedule = rate, schedule or PowerLaw(scale_next=1)

    def start(self) -> Descend:
        """No state."""
        return lambda g, loss, point: unit(g)[0] * (-self.rate * self.schedule.at(point))


class RootMeanSquare(StepRule):
    """-rate (sigma^2 - sigma'^2) / sigma rms(noise) g / rms(g): a share of the model's own move.

    FreeDoM's rule with CLIP (Yu et al. 2023, https://arxiv.org/abs/2303.09833; rate .02), and MPGD's (1 to 2.5, for the
    gradient at the clean estimate). In variance-preserving form -rate c_1 sigma rms(noise) g / rms(g) with the
    coefficient c_1 of the clean estimate in DDPM's posterior.
    """

    def __init__(self, rate: float = 0.02) -> None:
        """`rate`: the share."""
        self.rate = rate

    def start(self) -> Descend:
        """No state."""

        def descend(g: Tensor, loss: Tensor, point: Point) -> Tensor:
            move = (point.sigma**2 - point.sigma_next**2) / point.sigma
            return unit(g)[0] * length(point.noise) * (-self.rate * move)

        return descend
