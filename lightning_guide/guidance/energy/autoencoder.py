"""Autoencoders that keep a guided estimate near the data, and losses seen through them.

He et al. 2024 (MPGD), https://arxiv.org/abs/2311.16424.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.energy.energies.energy import Energy, Loss
from lightning_guide.guidance.energy.energies.networks import RunNetwork
from lightning_guide.recipe import Recorded

__all__ = ["Autoencoder", "Reconstructed", "RunAutoencoder", "Subspace"]


class Autoencoder(Recorded, nn.Module, ABC):
    """Base of autoencoders of clean data."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latent (B, *) of `x` (B, *)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Data (B, *) of the latent `z` (B, *)."""


class Subspace(Autoencoder):
    """z = U^T (x - centre), x = centre + U z with orthonormal columns U: the perfect one of data in a subspace."""

    basis: Tensor
    centre: Tensor

    def __init__(
        self,
        basis: Sequence[Sequence[float]] | Tensor,
        *,
        centre: Sequence[float] | Tensor | None = None,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        """`basis` U (d, k) for data of d elements and shape `data_shape`, default (d,); `centre` (d,), default 0.

        Raises:
            ValueError: if the columns of `basis` are not orthonormal.
        """
        super().__init__()
        columns = torch.as_tensor(basis, dtype=torch.float64)
        identity = torch.eye(columns.shape[-1]).double()
        if columns.ndim != 2 or not torch.allclose(columns.T @ columns, identity, atol=1e-5):
            raise ValueError(f"Subspace needs orthonormal columns (d, k), got a basis of shape {tuple(columns.shape)}")
        middle = torch.zeros(len(columns)) if centre is None else torch.as_tensor(centre)
        self.register_buffer("basis", columns)
        self.register_buffer("centre", middle.double())
        self.data_shape = (len(columns),) if data_shape is None else tuple(data_shape)

    def encode(self, x: Tensor) -> Tensor:
        """U^T (x - centre), (B, k)."""
        return (x.flatten(1) - self.centre.to(x)) @ self.basis.to(x)

    def decode(self, z: Tensor) -> Tensor:
        """centre + U z, (B, *data_shape)."""
        return (self.centre.to(z) + z @ self.basis.to(z).T).reshape(-1, *self.data_shape)


class RunAutoencoder(Autoencoder):
    """The autoencoder that the run in folder `run` has trained (`PictureTaskModule` with `Reconstruction`)."""

    def __init__(self, run: str) -> None:
        """`run`: its folder; the network is loaded at first use, frozen."""
        super().__init__()
        self.network = RunNetwork(run)

    def encode(self, x: Tensor) -> Tensor:
        """Its latent, in the dtype of `x`."""
        return self.network.part("encode", x)

    def decode(self, z: Tensor) -> Tensor:
        """Its picture, in the dtype of `z`."""
        return self.network.part("decode", z)


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
