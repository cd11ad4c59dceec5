"""Variational autoencoders of pictures: what turns pictures into latents that are trained on, and back.

Rombach et al. 2022, https://arxiv.org/abs/2112.10752. EDM2 trains on latents of `stabilityai/sd-vae-ft-mse`, fed with
pixels in [0, 1] (Karras et al. 2024, https://arxiv.org/abs/2312.02696, appendix).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_guide.guidance.energy.autoencoder import Autoencoder

__all__ = ["DiffusersVAE", "Posterior", "VariationalAutoencoder"]


class Posterior(NamedTuple):
    """The Gaussian of latents of each picture, `mean` and `std` (B, C, h, w)."""

    mean: Tensor
    std: Tensor


class VariationalAutoencoder(Autoencoder):
    """Base: pictures (B, 3, H, W) in [0, 1] to Gaussians of latents, and latents to pictures.

    A subclass gives `posterior` and `decode`, whose pictures may lie outside of [0, 1].
    """

    @abstractmethod
    def posterior(self, x: Tensor) -> Posterior:
        """The Gaussian of each of the pictures `x` (B, 3, H, W) in [0, 1]."""

    def encode(self, x: Tensor) -> Tensor:
        """Mean of the latents (B, C, h, w) of `x` (B, 3, H, W) in [0, 1]."""
        return self.posterior(x).mean


class DiffusersVAE(VariationalAutoencoder):
    """An `AutoencoderKL` of the diffusers library, loaded at its first use."""

    def __init__(self, path: str, *, subfolder: str | None = None, lowest: float = 0.0) -> None:
        """Names the model.

        Args:
            path: a folder as `save_pretrained` writes it, or a name on the Hugging Face hub.
            subfolder: folder inside of it, such as "vae".
            lowest: what black is for the model, white being 1: 0 as in EDM2's data, -1 as most models were trained.

        Raises:
            ValueError: if `lowest` is not below 1.
        """
        super().__init__()
        if not lowest < 1:
            raise ValueError(f"DiffusersVAE: lowest is {lowest}; expected the model's black, 0 or -1, below white, 1")
        self.path, self.subfolder, self.lowest = path, subfolder, lowest
        self._loaded: list[Any] = []  # in a list: no part of a checkpoint

    def posterior(self, x: Tensor) -> Posterior:
        """As `VariationalAutoencoder.posterior`.

        Raises:
            ValueError: if diffusers is not installed or the model cannot be loaded.
        """
        gaussian = self._model(x).encode(self.lowest + (1 - self.lowest) * x).latent_dist
        return Posterior(gaussian.mean, gaussian.std)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about in [0, 1], of the latents `z` (B, C, h, w).

        Raises:
            ValueError: as `posterior`.
        """
        return (self._model(z).decode(z).sample - self.lowest) / (1 - self.lowest)

    def _model(self, like: Tensor) -> Any:
        """The model, on the device of `like`."""
        if not self._loaded:
            try:
                from diffusers import AutoencoderKL
            except ImportError:
                raise ValueError(
                    "DiffusersVAE needs the diffusers library, which is not installed; install it with "
                    "`pip install lightning-guide[latents]`"
                ) from None
            options = {} if self.subfolder is None else {"subfolder": self.subfolder}
            try:
                model = AutoencoderKL.from_pretrained(self.path, **options)
            except (OSError, ValueError) as error:
                raise ValueError(f"no AutoencoderKL can be loaded from {self.path!r}: {error}") from None
            self._loaded.append(model.eval().requires_grad_(False))
        if like.device != torch.device(self._loaded[0].device):
            self._loaded[0].to(like.device)
        return self._loaded[0]
