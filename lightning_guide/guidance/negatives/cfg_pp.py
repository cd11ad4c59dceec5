"""CFG++: clean estimates on the line between the branches, re-noised along the negative.

Chung et al. 2025, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
https://arxiv.org/abs/2406.08070: clean = D_neg + w (D_pos - D_neg) with w = lambda in [0, 1], and
noise = (x - D_neg) / sigma. An Euler step is x <- clean + sigma' (x - D_neg) / sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance.combinations.base import Branch, Combination, Negatives, Plain
from lightning_guide.guidance.negatives.cfg import ClassifierFreeGuidance
from lightning_guide.guidance.schedules import WeightSchedule, guides_at, weight_at

__all__ = ["ClassifierFreeGuidancePP", "RenoiseWithNegative"]


class RenoiseWithNegative(Combination):
    """CFG++. The first negative gives the noise direction and is evaluated at every weight, at w = 1 too.

    Outside an `Interval` or a `StepWindow` the positive is alone, with its own noise. At w = 0 the result is the
    negative's prediction, to the bit, without an evaluation of the positive. Further negatives push the clean estimate
    as in the plain rule.
    """

    def is_off(self, weights: Sequence[float], trajectory: Trajectory) -> bool:
        """Return False: at w = 1 the noise is still that of the negative."""
        return False

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the plain rule's clean estimate with the noise of the first negative."""
        (weight, negative), *others = negatives
        neg = negative(x, sigma)
        if weight == 0 and all(other == 1 for other, _ in others):
            return neg
        guided = Plain().combine(positive, [(weight, lambda x, sigma: neg), *others], x, sigma, trajectory)
        return replace(guided, noise=neg.direction(x, sigma))


class ClassifierFreeGuidancePP(ClassifierFreeGuidance):
    """CFG++: clean = D_uncond + w (D_cond - D_uncond), noise = (x - D_uncond) / sigma, w = lambda. Two evaluations.

    Both branches are evaluated at every weight except w = 0, which is the unconditional model. On Stable Diffusion
    lambda = 0.6 acts like w = 7.5 of classifier-free guidance. lambda = 1 is not off; outside an interval the model is
    alone.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 0.6,
        *,
        unconditional: Denoiser | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`weight` lambda in [0, 1]; `unconditional` defaults to `positive` without its label.

        Raises:
            ValueError: if a weight, or one of a schedule, is outside [0, 1].
        """
        for bound in (weight.bounds or ()) if isinstance(weight, WeightSchedule) else (weight,):
            _check(bound)
        super().__init__(weight, unconditional=unconditional, positive=positive, combination=RenoiseWithNegative())

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory.

        Raises:
            ValueError: if a schedule of unknown bounds is outside [0, 1] at one of its levels.
        """
        for level in (trajectory.sigma, *trajectory.levels[:-1]):
            if guides_at(self.weights[0], level):
                _check(weight_at(self.weights[0], level))
        return super().start(trajectory)


def _check(weight: float) -> None:
    """Refuse a weight outside [0, 1]."""
    if not 0 <= weight <= 1:
        raise ValueError(f"CFG++ interpolates: it needs a weight between 0 and 1, got {weight}")
