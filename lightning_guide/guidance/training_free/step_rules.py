"""Step rules: from a gradient of the loss to a displacement, per sample.

g is the gradient taken by the update (with respect to x, the clean estimate or a latent), c a schedule, |.| the norm of
one sample. A rule is started for each descent, so that it may keep moments. A sample whose gradient is zero or not
finite, or whose step would not be finite, is not displaced and is counted (see `LocalLoss.step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_guide.denoiser import expand
from lightning_guide.guidance.training_free.schedules import PowerLaw, Schedule, StepContext
from lightning_guide.utils.recipe import HasRecipe

__all__ = [
    "AdamStep",
    "ClippedStep",
    "ConstantStep",
    "Descend",
    "NormalizedStep",
    "NoiseScaledPolyakStep",
    "RootMeanSquareStep",
    "StepRule",
    "PolyakStep",
    "row_norms",
    "unit_rows",
]


Descend = Callable[[Tensor, Tensor, StepContext], Tensor]
"""(gradient (B, *), loss (B,), context) -> displacement (B, *)."""


def unit_rows(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return v / |v| `(B, *)` and |v| `(B, 1, ...)` for each sample, without overflow; NaN where v is zero."""
    largest = expand(v.abs().flatten(1).amax(1), v)
    scaled = v / largest
    norm = row_norms(scaled)
    return scaled / norm, largest * norm


def row_norms(v: Tensor) -> Tensor:
    """Return |v| for each sample, `(B, 1, ...)`."""
    return expand(v.flatten(1).norm(dim=1), v)


class StepRule(HasRecipe, ABC):
    """Base of the rules."""

    @property
    def is_off(self) -> bool:
        """Whether all steps are 0."""
        return getattr(self, "rate", 1) == 0

    @abstractmethod
    def start(self) -> Descend:
        """Return the rule for one descent, with a fresh state."""


class ConstantStep(StepRule):
    """Step -rate c g, proportional to the gradient.

    For a gradient with respect to x, c is PowerLaw(2) = sigma^2 for a step along the score (universal guidance, LGD),
    PowerLaw(scale=1, scale_next=1) for DPS, PowerLaw(scale_next=1) for FreeDoM, PowerLaw(scale=2) for TFG.
    """

    def __init__(self, rate: float, *, schedule: Schedule | None = None) -> None:
        """Set `rate` in the units of the paper that the `schedule` c belongs to; default c = 1."""
        self.rate, self.schedule = rate, schedule or PowerLaw()

    def start(self) -> Descend:
        """Return the rule, which has no state."""
        return lambda g, loss, context: g * (-self.rate * self.schedule.at(context))


class NormalizedStep(StepRule):
    """Step -rate c g / |g|, independent of the scale of the loss.

    c = sqrt(1 + sigma'^2) by default: a step of length `rate` in the variance-preserving next state. With `rate` times
    sqrt(d) this is MPGD's rule for faces, rho sqrt(1 + sigma'^2) g / rms(g).
    """

    def __init__(self, rate: float, *, schedule: Schedule | None = None) -> None:
        """Set the length `rate` of the step, times the `schedule` c."""
        self.rate, self.schedule = rate, schedule or PowerLaw(scale_next=1)

    def start(self) -> Descend:
        """Return the rule, which has no state."""
        return lambda g, loss, context: unit_rows(g)[0] * (-self.rate * self.schedule.at(context))


class RootMeanSquareStep(StepRule):
    """Step -rate (sigma^2 - sigma'^2) / sigma rms(noise) g / rms(g), a fraction of the model's own step.

    FreeDoM's rule with CLIP (Yu et al. 2023, https://arxiv.org/abs/2303.09833; rate 0.02), and MPGD's (1 to 2.5, for
    the gradient at the clean estimate). In variance-preserving form -rate c_1 sigma rms(noise) g / rms(g) with the
    coefficient c_1 of the clean estimate in DDPM's posterior.
    """

    def __init__(self, rate: float = 0.02) -> None:
        """Set the fraction `rate`."""
        self.rate = rate

    def start(self) -> Descend:
        """Return the rule, which has no state."""

        def descend(g: Tensor, loss: Tensor, context: StepContext) -> Tensor:
            length = (context.sigma**2 - context.sigma_next**2) / context.sigma
            return unit_rows(g)[0] * row_norms(context.noise) * (-self.rate * length)

        return descend


class AdamStep(StepRule):
    """Adam's step -rate c m / (sqrt(v) + epsilon) with bias-corrected moments m, v of h g and h^2 g^2, elementwise.

    m <- beta1 m + (1 - beta1) h g, v <- beta2 v + (1 - beta2) h^2 g^2. The moments last as long as the descent: the
    whole trajectory for a gradient through the denoiser, its repetitions under time travel included. Kingma and Ba
    2015, https://arxiv.org/abs/1412.6980; Belardi et al. 2026 (AdamDPS).
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
        """Configure Adam.

        Args:
            rate: size of the step.
            beta1: decay of m.
            beta2: decay of v.
            epsilon: added to sqrt(v).
            schedule: c of the step; default 1.
            gradient_schedule: h of the gradients; default 1.

        Raises:
            ValueError: if a beta is not in [0, 1).
        """
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"AdamStep needs beta1 and beta2 in [0, 1), got {beta1} and {beta2}")
        self.rate, self.beta1, self.beta2, self.epsilon = rate, beta1, beta2, epsilon
        self.schedule, self.gradient_schedule = schedule or PowerLaw(), gradient_schedule or PowerLaw()

    def start(self) -> Descend:
        """Return the rule with zero moments."""
        moments: list[Tensor] = []
        count = 0

        def descend(g: Tensor, loss: Tensor, context: StepContext) -> Tensor:
            nonlocal count
            hg = g * self.gradient_schedule.at(context)
            m, v = moments or (torch.zeros_like(hg), torch.zeros_like(hg))
            m, v, count = torch.lerp(hg, m, self.beta1), torch.lerp(hg * hg, v, self.beta2), count + 1
            moments[:] = [m, v]
            m, v = m / (1 - self.beta1**count), v / (1 - self.beta2**count)
            return m / (v.sqrt() + self.epsilon) * (-self.rate * self.schedule.at(context))

        return descend


class NoiseScaledPolyakStep(StepRule):
    """Step -rate c |noise| g / |g|^2: Polyak's, with the norm of the noise for the unknown gap f - f*.

    Shen et al. 2024, "Understanding and Improving Training-free Loss-based Diffusion Guidance",
    https://arxiv.org/abs/2403.12404, algorithm 2. With c = sqrt((1 + sigma'^2) / (1 + sigma^2)) the step is
    -rate |noise| g_VP / |g_VP|^2 in the paper's coordinates. It is inversely proportional to the scale of the loss,
    which is why published rates range from 0.001 to 2, and grows without bound where the gradient vanishes: use it with
    `ClippedStep`.
    """

    def __init__(self, rate: float, *, schedule: Schedule | None = None) -> None:
        """Set `rate` eta and `schedule` c, by default as above (1 suits a gradient at the clean estimate)."""
        self.rate, self.schedule = rate, schedule or PowerLaw(scale=-1, scale_next=1)

    def start(self) -> Descend:
        """Return the rule, which has no state."""

        def descend(g: Tensor, loss: Tensor, context: StepContext) -> Tensor:
            direction, norm = unit_rows(g)
            return direction * (row_norms(context.noise) / norm) * (-self.rate * self.schedule.at(context))

        return descend


class PolyakStep(StepRule):
    """Polyak's step -rate c (loss - least) g / |g|^2, zero where the loss is below `least`.

    Polyak's step size is (f - f*) / |g|^2. c is as for `NoiseScaledPolyakStep`. The step does not depend on the scale
    of the loss; for loss = r^2 instead of r it is half as long.
    """

    def __init__(self, rate: float, *, least: float = 0.0, schedule: Schedule | None = None) -> None:
        """Set `rate` (1 is Polyak's) and `least`, the smallest possible value of the loss."""
        self.rate, self.least, self.schedule = rate, least, schedule or PowerLaw(scale=-1, scale_next=1)

    def start(self) -> Descend:
        """Return the rule, which has no state."""

        def descend(g: Tensor, loss: Tensor, context: StepContext) -> Tensor:
            direction, norm = unit_rows(g)
            gap = (loss - self.least).clamp(min=0).reshape(norm.shape)
            return direction * (gap / norm) * (-self.rate * self.schedule.at(context))

        return descend


class ClippedStep(StepRule):
    """The step of `rule`, clipped to |step| <= cap sqrt(d) sigma', a fraction of the noise in the next state.

    d is the number of elements of one sample. A trust region around any rule. The last step of a trajectory, to
    sigma' = 0, is clipped to zero: no later network call could correct it.
    """

    def __init__(self, rule: StepRule, cap: float = 0.3) -> None:
        """Clip the step of `rule` to the fraction `cap` of the noise.

        Raises:
            ValueError: unless `cap` is positive.
        """
        if not cap > 0:
            raise ValueError(f"ClippedStep needs cap > 0, got {cap}")
        self.rule, self.cap = rule, cap

    @property
    def is_off(self) -> bool:
        """Whether the inner rule is."""
        return self.rule.is_off

    def start(self) -> Descend:
        """Return the clipped rule, with a fresh state."""
        inner = self.rule.start()

        def descend(g: Tensor, loss: Tensor, context: StepContext) -> Tensor:
            step = inner(g, loss, context)
            longest = self.cap * step[0].numel() ** 0.5 * context.sigma_next
            return step * (longest / row_norms(step)).clamp(max=1)

        return descend
