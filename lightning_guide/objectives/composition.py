"""Energies composed of energies: weighted sums, and energies of transformed, reconstructed or decoded data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.objectives.energy import Energy, Loss, check_objective
from lightning_guide.pretrained.autoencoders import Autoencoder

__all__ = ["Decoded", "NegativeEnergy", "NegativeReward", "Reconstructed", "Transformed", "WeightedSum"]


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
        return lambda x, condition, number: self._sum([loss(x, condition, number) for loss in losses])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the sum (B,)."""
        return self._sum([each(x, condition) for each in self._parts])

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum(0)


class NegativeReward(WeightedSum):
    """Weighted objective as an energy, loss = -weight f(x): the model distribution is tilted by exp(weight f).

    It is the `WeightedSum` of one objective. With weight 1 the objective itself can be used.
    """

    def __init__(self, reward: Energy, *, weight: float = 1.0) -> None:
        """Take the `reward` f and its `weight`, an inverse temperature."""
        super().__init__([reward], [weight])


class Transformed(Energy):
    """Base of energies of transformed data, loss(g(x))."""

    def __init__(self, energy: Energy) -> None:
        """Take the `energy` of transformed data."""
        super().__init__()
        self.energy = energy
        self.num_classes = energy.num_classes

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """Return g(x) (B, *) of `x` (B, *)."""

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss of transformed data along `trajectory`, whose x has their shape for the inner energy."""
        with torch.no_grad():
            loss = self.energy.start(replace(trajectory, x=self.transform(trajectory.x)))
        return lambda x, condition, number: loss(self.transform(x), condition, number)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of transformed `x` (B, *)."""
        loss: Tensor = self.energy(self.transform(x), condition)
        return loss


class NegativeEnergy(Transformed):
    """Energy as an objective, f = -loss(x). Every energy without labels is one; the class checks the labels early."""

    def __init__(self, energy: Energy) -> None:
        """Take an `energy` that depends on neither condition nor trajectory.

        Raises:
            ValueError: if it depends on the condition.
        """
        check_objective(energy)
        super().__init__(energy)

    def transform(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


class Reconstructed(Transformed):
    """Energy of a reconstruction, loss(decode(encode(x))), with the gradient of MPGD-AE."""

    def __init__(self, energy: Energy, autoencoder: Autoencoder) -> None:
        """Take the `energy` of the reconstruction of x by `autoencoder`."""
        super().__init__(energy)
        self.autoencoder = autoencoder

    def transform(self, x: Tensor) -> Tensor:
        """Return decode(encode(x))."""
        return self.autoencoder.decode(self.autoencoder.encode(x))


class Decoded(Transformed):
    """Objective of decoded latents, f(decoder(z)), linearized at z with one pass through the decoder per round.

    The paper linearizes at the image instead and decodes at each step: `LookAhead(decoder=...)`.
    """

    def __init__(self, objective: Energy, decoder: nn.Module) -> None:
        """Take the `objective` of decoded latents and the `decoder`, a `LatentSpace`, for example, which is frozen."""
        super().__init__(objective)
        self.decoder = decoder.requires_grad_(False)

    def transform(self, x: Tensor) -> Tensor:
        """Return decoder(x)."""
        data: Tensor = self.decoder(x)
        return data
