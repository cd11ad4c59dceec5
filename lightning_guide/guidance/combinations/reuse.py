"""Reuse of the difference: negatives are evaluated in every k-th step, and their differences kept in between.

D_pos - D_neg changes slowly along a trajectory. For a Gaussian of variance s^2 and a wider one it is proportional to
sigma^2 / (s^2 + sigma^2)^(3/2): to sigma^2 at low noise levels, where the difference of the scores (D - x) / sigma^2 is
constant, and to 1 / sigma at high ones. A difference from sigma_0 is therefore used as

    D_pos - D_neg = (sigma / sigma_0)^power (D_pos - D_neg)(sigma_0).

power = 0 keeps the difference of the clean estimates, 1 of the noises, 2 of the scores. FasterCache (Lv et al. 2024,
https://arxiv.org/abs/2410.19355) reuses the difference of classifier-free guidance in video models in two frequency
bands with changing weights; this rule has one band. The paper was not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import Branch, Combination, Negatives, Wrapping
from lightning_guide.utils.scalars import check_whole

__all__ = ["ReusedDifference"]


@dataclass
class _Past:
    """The difference of a negative at its last evaluation: D_pos - D_neg, and of the noises if they are separate."""

    step: int
    level: float
    sigma: Tensor
    clean: Tensor
    noise: Tensor | None


class ReusedDifference(Wrapping):
    """An inner combination whose negatives are evaluated in every k-th of the guided steps; k = 1 is the inner rule.

    Both stages of such a step evaluate them. In the steps between, the inner rule gets D_pos - (sigma / sigma_0)^power
    (D_pos - D_neg)(sigma_0), at the cost of the positive alone. The difference is the newest, and one of each sample;
    `Restart` begins with a new one at `high`.
    """

    def __init__(self, every: int = 2, *, power: float = 1.0, combination: Combination | None = None) -> None:
        """Evaluate the negatives in one of `every` steps; `combination` defaults to `Plain`.

        Raises:
            ValueError: if `every` is not a whole number from 1 on, or `power` is not finite.
        """
        if not math.isfinite(power):
            raise ValueError(f"ReusedDifference needs a finite power, got {power}")
        self.every = check_whole(every, "every of ReusedDifference", least=1)
        self.power, self.combination = power, self.watch(combination)
        self._past: dict[int, _Past] = {}

    def called(self, weights: Sequence[float], trajectory: Trajectory) -> list[bool]:
        """Return those that the inner rule calls, where no difference is reused."""
        inner = super().called(weights, trajectory)
        return [called and not self._reuses(i, trajectory) for i, called in enumerate(inner)]

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        """Return the prediction of the inner rule for negatives that remember their differences."""
        found: list[Prediction] = []

        def once(at: Tensor, level: Tensor) -> Prediction:
            if at is not x:
                return positive(at, level)
            if not found:
                found.append(positive(x, sigma))
            return found[0]

        def remembered(i: int, negative: Branch) -> Branch:
            def branch(at: Tensor, level: Tensor) -> Prediction:
                if at is x and self._reuses(i, trajectory):
                    return self._reused(once(x, sigma), self._past[i], x, sigma)
                pos, neg = once(at, level), negative(at, level)
                if at is x:
                    separate = pos.noise is not None or neg.noise is not None
                    noise = pos.direction(x, sigma) - neg.direction(x, sigma) if separate else None
                    self._past[i] = _Past(trajectory.step, trajectory.sigma, sigma, pos.clean - neg.clean, noise)
                return neg

            return branch

        between = [(weight, remembered(i, negative)) for i, (weight, negative) in enumerate(negatives)]
        return super().combine(once, between, x, sigma, trajectory)

    def _reuses(self, i: int, trajectory: Trajectory) -> bool:
        """Return whether the difference of negative `i` is reused in this step; a repeated step evaluates it again."""
        past = self._past.get(i)
        return past is not None and 0 < trajectory.step - past.step < self.every and trajectory.sigma <= past.level

    def _reused(self, pos: Prediction, past: _Past, x: Tensor, sigma: Tensor) -> Prediction:
        """Return the negative that the difference `past` implies at `sigma`."""
        scale = (sigma / past.sigma) ** self.power
        noise = None if past.noise is None else pos.direction(x, sigma) - past.noise * scale / (sigma / past.sigma)
        return Prediction(pos.clean - past.clean * scale, noise)
