"""Base of energies, losses of a clean estimate with likelihood exp(-loss), and compositions of energies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.pretrained.autoencoders import Autoencoder
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Energy", "Loss", "Reconstructed", "WeightedSum"]


Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(clean points (R, *), their conditions (R,) or None, the numbers (R,) of their samples in the batch) -> loss (R,)."""


class Energy(HasRecipe, nn.Module, ABC):
    """Base of energies, evaluated per sample, independent of the batch.

    Attributes:
        num_classes: number of labels of the condition, 0 if the energy does not depend on it.
    """

    num_classes: int = 0

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of clean points `x` (B, *) with labels `condition` (B,), differentiable in x."""

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss along `trajectory`, for energies with data per sample; by default `forward`."""
        return lambda x, condition, number: self(x, condition)


class WeightedSum(Energy):
    """Weighted sum of energies, sum_i weight_i loss_i."""

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float] | None = None) -> None:
        """Take energies and one weight for each; default 1.

        Raises:
            ValueError: if the numbers of weights and energies differ, or are 0.
        """
        super().__init__()
        self.weights = [1.0] * len(energies) if weights is None else list(weights)
        if not energies or len(self.weights) != len(energies):
            raise ValueError(f"a sum needs one weight for each energy, got {len(self.weights)} and {len(energies)}")
        self.energies = nn.ModuleList(energies)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Largest number of labels of a part."""
        return max(each.num_classes for each in self._parts)

    @property
    def _parts(self) -> list[Energy]:
        return list(self.energies)  # type: ignore[arg-type]

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the sum of the parts along `trajectory`."""
        losses = [each.start(trajectory) for each in self._parts]

        def total(x: Tensor, condition: Tensor | None, number: Tensor) -> Tensor:
            return self._sum([loss(x, condition, number) for loss in losses])

        return total

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the sum (B,)."""
        return self._sum([each(x, condition) for each in self._parts])

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum(0)


class Reconstructed(Energy):
    """Energy of a reconstruction, loss(decode(encode(x))), with the gradient of MPGD-AE."""

    def __init__(self, energy: Energy, autoencoder: Autoencoder) -> None:
        """Take the `energy` of the reconstruction of x by `autoencoder`."""
        super().__init__()
        self.energy, self.autoencoder = energy, autoencoder
        self.num_classes = energy.num_classes

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss of the reconstruction along `trajectory`."""
        loss = self.energy.start(trajectory)

        def reconstructed(x: Tensor, condition: Tensor | None, number: Tensor) -> Tensor:
            return loss(self.autoencoder.decode(self.autoencoder.encode(x)), condition, number)

        return reconstructed

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of the reconstruction of `x` (B, *)."""
        return self.energy(self.autoencoder.decode(self.autoencoder.encode(x)), condition)
