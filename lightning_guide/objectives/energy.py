"""Energies: losses of a clean estimate, low where a sample is as wanted. exp(-loss) is the likelihood."""

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
    """Base of the energies. Each row of a batch is judged by itself, in whatever company.

    Attributes:
        num_classes: number of labels that the condition may be, 0 if the energy does not read it.
    """

    num_classes: int = 0

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of clean points `x` (B, *), differentiable; `condition` (B,) is that of the samples."""

    def start(self, trajectory: Trajectory) -> Loss:
        """The loss along `trajectory`, for energies that draw something for each sample; here `forward`."""
        return lambda x, condition, number: self(x, condition)


class WeightedSum(Energy):
    """sum_i weight_i loss_i."""

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float] | None = None) -> None:
        """One weight for each energy; default 1.

        Raises:
            ValueError: if there is not one weight for each energy, or no energy.
        """
        super().__init__()
        self.weights = [1.0] * len(energies) if weights is None else list(weights)
        if not energies or len(self.weights) != len(energies):
            raise ValueError(f"a sum needs one weight for each energy, got {len(self.weights)} and {len(energies)}")
        self.energies = nn.ModuleList(energies)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The largest number of labels that a part knows."""
        return max(each.num_classes for each in self._parts)

    @property
    def _parts(self) -> list[Energy]:
        return list(self.energies)  # type: ignore[arg-type]

    def start(self, trajectory: Trajectory) -> Loss:
        """The sum of the parts along `trajectory`."""
        losses = [each.start(trajectory) for each in self._parts]

        def total(x: Tensor, condition: Tensor | None, number: Tensor) -> Tensor:
            return self._sum([loss(x, condition, number) for loss in losses])

        return total

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The sum (B,)."""
        return self._sum([each(x, condition) for each in self._parts])

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum(0)


class Reconstructed(Energy):
    """loss(decode(encode(x))): its gradient is that of MPGD-AE."""

    def __init__(self, energy: Energy, autoencoder: Autoencoder) -> None:
        """`energy` of what `autoencoder` makes of x."""
        super().__init__()
        self.energy, self.autoencoder = energy, autoencoder
        self.num_classes = energy.num_classes

    def start(self, trajectory: Trajectory) -> Loss:
        """The loss of the reconstruction."""
        loss = self.energy.start(trajectory)

        def reconstructed(x: Tensor, condition: Tensor | None, number: Tensor) -> Tensor:
            return loss(self.autoencoder.decode(self.autoencoder.encode(x)), condition, number)

        return reconstructed

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of the reconstruction of `x` (B, *)."""
        return self.energy(self.autoencoder.decode(self.autoencoder.encode(x)), condition)
