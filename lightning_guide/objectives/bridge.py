"""Rewards as energies and energies as rewards: what is written for one kind of guidance serves the other.

An `Objective` f is to be large and knows the sample alone: gradient guidance, look-ahead, fine-tuning. An `Energy` of
`guidance.energy` is a loss, to be small; exp(-loss) is a likelihood, and it may read the condition and the trajectory.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.guidance.energy.energies.energy import Energy
from lightning_guide.objectives.objective import Objective

__all__ = ["NegativeEnergy", "NegativeReward"]


class NegativeReward(Energy):
    """loss = -weight f(x): the distribution of the model tilted by exp(weight f)."""

    def __init__(self, reward: Objective, *, weight: float = 1.0) -> None:
        """`reward` f, an objective of gradient guidance; `weight` is the inverse of a temperature."""
        super().__init__()
        self.reward, self.weight = reward, weight

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of `x` (B, *), whatever the condition; values that are not finite are skipped by the caller."""
        value: Tensor = self.reward(x)
        return -self.weight * value


class NegativeEnergy(Objective):
    """f = -loss(x), without a condition."""

    def __init__(self, energy: Energy) -> None:
        """`energy` of training-free guidance, one that reads neither condition nor trajectory.

        Raises:
            ValueError: if it takes its label from the condition.
        """
        super().__init__()
        if energy.num_classes:
            reader = type(energy).__name__
            raise ValueError(f"NegativeEnergy knows no labels, but {reader} reads them: name one (label: 3)")
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        """f (B,) of `x` (B, *).

        Raises:
            ValueError: if the loss needs a trajectory, as that of a `Measurement`.
        """
        return -self.energy(x)
