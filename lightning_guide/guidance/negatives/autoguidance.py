"""Autoguidance: a model pushed away from the prediction of a worse version of itself.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507,
equation 4: D = D_bad + w (D_good - D_bad), both under the same condition.
"""

from __future__ import annotations

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.base import Main
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.negatives.cfg import Unconditional
from lightning_guide.guidance.schedules import Interval, WeightSchedule

__all__ = ["Autoguidance", "AutoguidanceBlend"]


class Autoguidance(Guided):
    """Autoguidance, D_bad + w (D_good - D_bad), with an earlier, smaller or longer averaged `guider`. Two evaluations.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> good, bad = gaussian(torch.zeros(1), torch.eye(1)), gaussian(torch.zeros(1), 3 * torch.eye(1))
        >>> x, sigma = torch.tensor([[4.0]]), torch.tensor(1.0)
        >>> good(x, sigma).item(), bad(x, sigma).item(), Autoguidance(bad, 2.0, positive=good)(x, sigma).item()
        (2.0, 3.0, 1.0)
    """

    def __init__(
        self,
        guider: Denoiser,
        weight: float | WeightSchedule = 2.0,
        *,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`guider` is the bad model, usually `Snapshot`; `positive` the good one."""
        super().__init__([guider], [weight], positive=positive, combination=combination)


class AutoguidanceBlend(Guided):
    """Blend of classifier-free guidance (alpha = 0) and autoguidance (alpha = 1), appendix B.2 of the paper.

    D = D_good + (w_u - 1) (D_good - D_uncond) + (w_c - 1) (D_good - D_bad) with
    w_u = (1 - alpha) (w - 1) + 1 and w_c = alpha (w - 1) + 1.
    """

    def __init__(
        self,
        guider: Denoiser,
        weight: float | WeightSchedule = 2.0,
        *,
        alpha: float = 0.5,
        interval: tuple[float, float] | None = None,
        unconditional: Denoiser | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`weight` w and blend `alpha` in [0, 1]; `interval` (low, high] in sigma is an `Interval` around the weight.

        `unconditional` defaults to `positive` without its condition.

        Raises:
            ValueError: if `alpha` is outside, a weight is not finite, or the interval is empty.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"the blend needs alpha between 0 (CFG) and 1 (autoguidance), got {alpha}")
        if interval is not None:
            weight = Interval(weight, *interval)
        weights = [_part(weight, share) for share in (1 - alpha, alpha)]
        positive = positive if positive is not None else Main()
        unconditional = unconditional if unconditional is not None else Unconditional(positive)
        super().__init__([unconditional, guider], weights, positive=positive)


def _part(weight: float | WeightSchedule, share: float) -> float | WeightSchedule:
    """Return 1 + `share` (w - 1) of a weight or schedule w."""
    return _Part(weight, share) if isinstance(weight, WeightSchedule) else share * (weight - 1) + 1


class _Part(WeightSchedule):
    """1 + share (w - 1) of a schedule w, which guides where it does."""

    def __init__(self, whole: WeightSchedule, share: float) -> None:
        self.whole, self.share = whole, share

    def at(self, sigma: float) -> float:
        """Return the weight at `sigma`."""
        return self.share * (self.whole.at(sigma) - 1) + 1

    def guides(self, sigma: float) -> bool:
        """Return whether the schedule does."""
        return self.whole.guides(sigma)
