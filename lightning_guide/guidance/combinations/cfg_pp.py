"""CFG++: clean estimates on the line between the branches, re-noised along the negative.

Chung et al. 2025, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
https://arxiv.org/abs/2406.08070: clean = D_neg + w (D_pos - D_neg) with w = lambda in [0, 1], and
noise = (x - D_neg) / sigma. An Euler step is x <- clean + sigma' (x - D_neg) / sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_guide.denoiser import Prediction, Trajectory
from lightning_guide.guidance.combinations.base import Branch, Combination, Combine, Plain

__all__ = ["RenoiseWithNegative"]


class RenoiseWithNegative(Combination):
    """CFG++. The first negative gives the noise direction and is evaluated at every weight, at w = 1 too.

    At w = 0 the result is the negative's prediction, to the bit, without an evaluation of the positive. Further
    negatives push the clean estimate as in the plain rule.
    """

    def start(self, trajectory: Trajectory) -> Combine:
        """Return the rule, which has no state."""
        plain = Plain().start(trajectory)

        def combine(
            positive: Branch, negatives: Sequence[tuple[float, Branch]], x: Tensor, sigma: Tensor
        ) -> Prediction:
            (weight, negative), *others = negatives
            neg = negative(x, sigma)
            if weight == 0 and all(other == 1 for other, _ in others):
                return neg
            guided = plain(positive, [(weight, lambda x, sigma: neg), *others], x, sigma)
            return Prediction(guided.clean, neg.direction(x, sigma))

        return combine
