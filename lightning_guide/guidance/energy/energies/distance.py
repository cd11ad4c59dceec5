"""Distances to a point, of the clean estimate itself or of what a network sees in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.energy.energies.energy import Energy, Loss
from lightning_guide.guidance.energy.energies.stored import stored, stored_for

__all__ = ["Distance", "NetworkDistance", "SquaredDistance", "Style"]


class SquaredDistance(Energy):
    """|x - target|^2 / (2 temperature^2): the likelihood N(target; x, temperature^2 I)."""

    target: Tensor

    def __init__(self, target: Sequence[float] | Tensor, temperature: float = 1.0) -> None:
        """`target` of the shape of one x, or one that broadcasts.

        Raises:
            ValueError: unless `temperature` is positive.
        """
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"SquaredDistance needs temperature > 0, got {temperature}")
        self.temperature = temperature
        self.register_buffer("target", torch.as_tensor(target, dtype=torch.float64))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,)."""
        return (x - self.target.to(x)).flatten(1).square().sum(1) / (2 * self.temperature**2)


class Distance(Energy):
    """|x - target|, not squared: its gradient does not shrink with the distance."""

    target: Tensor

    def __init__(self, target: Sequence[float] | Tensor) -> None:
        """`target` of the shape of one x, or one that broadcasts."""
        super().__init__()
        self.register_buffer("target", torch.as_tensor(target, dtype=torch.float64))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,)."""
        return (x - self.target.to(x)).flatten(1).norm(dim=1)


class NetworkDistance(Energy):
    """|phi(x) - phi(reference)|, not squared: segmentation maps, sketches, identities, in the eyes of a network phi.

    Of several references sample i has reference i, modulo their number.
    """

    def __init__(self, network: nn.Module, reference: str | Sequence[float] | Tensor) -> None:
        """`reference`: clean x in the form that the denoiser sees, one or several, or a file of them, see `stored`."""
        super().__init__()
        self.network, self.reference = network, reference

    def start(self, trajectory: Trajectory) -> Loss:
        """The loss along `trajectory`, which knows the samples."""
        with torch.no_grad():
            wanted = self._describe(stored_for(self.reference, trajectory))
        return lambda x, condition, number: (self._describe(x) - wanted[number]).flatten(1).norm(dim=1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of samples 0 ... B - 1."""
        references = stored(self.reference, x)
        with torch.no_grad():
            wanted = self._describe(references[torch.arange(len(x), device=x.device) % len(references)])
        return (self._describe(x) - wanted).flatten(1).norm(dim=1)

    def _describe(self, x: Tensor) -> Tensor:
        seen: Tensor = self.network(x)
        return seen


class Style(NetworkDistance):
    """|Gram(phi(x)) - Gram(phi(reference))| / scale with Gram = F F^T / pixels of the features F (channels, pixels).

    Gatys et al. 2016. Ye et al. 2024 take the second hidden layer of CLIP and a scale of 100.
    """

    def __init__(
        self, network: nn.Module, reference: str | Sequence[float] | Tensor, *, scale: float = 1.0
    ) -> None:
        """`network` maps pictures to features (B, C, H, W).

        Raises:
            ValueError: unless `scale` is positive.
        """
        super().__init__(network, reference)
        if not scale > 0:
            raise ValueError(f"Style needs scale > 0, got {scale}")
        self.scale = scale

    def _describe(self, x: Tensor) -> Tensor:
        features = super()._describe(x).flatten(2)  # (B, C, pixels)
        return features @ features.mT / features.shape[-1] / self.scale
