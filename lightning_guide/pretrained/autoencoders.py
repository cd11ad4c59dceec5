"""Autoencoders of clean data: for guidance on the data manifold (MPGD), and for latent diffusion.

MPGD: He et al. 2024, https://arxiv.org/abs/2311.16424. Latent diffusion: Rombach et al. 2022,
https://arxiv.org/abs/2112.10752. EDM2 trains on latents of `stabilityai/sd-vae-ft-mse` of pixels in [0, 1] (Karras et
al. 2024, https://arxiv.org/abs/2312.02696, appendix).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_guide.pretrained.folder_parts import check_part
from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.networks import RunNetwork
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Autoencoder", "DiffusersVAE", "Posterior", "RunAutoencoder", "Subspace", "VariationalAutoencoder"]


class Autoencoder(HasRecipe, nn.Module, ABC):
    """Base of autoencoders of clean data."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the latent (B, *) of `x` (B, *)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the data (B, *) of the latent `z` (B, *)."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the data (B, *) of the latent `z` (B, *), as a decoder."""
        return self.decode(z)


class Subspace(Autoencoder):
    """Linear autoencoder z = U^T (x - center), x = center + U z with orthonormal columns U, exact on their span."""

    basis: Tensor
    center: Tensor

    def __init__(
        self,
        basis: Sequence[Sequence[float]] | Tensor,
        *,
        center: Sequence[float] | Tensor | None = None,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        """Take `basis` U (d, k) for data of d elements and shape `data_shape`, default (d,); `center` (d,), default 0.

        Raises:
            ValueError: if the columns of `basis` are not orthonormal.
        """
        super().__init__()
        columns = torch.as_tensor(basis, dtype=torch.float64)
        identity = torch.eye(columns.shape[-1]).double()
        if columns.ndim != 2 or not torch.allclose(columns.T @ columns, identity, atol=1e-5):
            raise ValueError(f"Subspace needs orthonormal columns (d, k), got a basis of shape {tuple(columns.shape)}")
        origin = torch.zeros(len(columns)) if center is None else torch.as_tensor(center)
        self.register_buffer("basis", columns)
        self.register_buffer("center", origin.double())
        self.data_shape = (len(columns),) if data_shape is None else tuple(data_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return U^T (x - center), (B, k)."""
        return (x.flatten(1) - self.center.to(x)) @ self.basis.to(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return center + U z, (B, *data_shape)."""
        return (self.center.to(z) + z @ self.basis.to(z).T).reshape(-1, *self.data_shape)


class RunAutoencoder(Autoencoder):
    """Autoencoder trained by a run of `ImageTaskModule` with `Reconstruction`."""

    def __init__(self, run: str) -> None:
        """Take the run folder; the network is loaded at first use and frozen."""
        super().__init__()
        self.network = RunNetwork(run)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent, in the dtype of `x`."""
        return self.network.part("encode", x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the image, in the dtype of `z`."""
        return self.network.part("decode", z)


class Posterior(NamedTuple):
    """Gaussian posterior of latents, `mean` and `std` (B, C, h, w)."""

    mean: Tensor
    std: Tensor


class VariationalAutoencoder(Autoencoder):
    """Base of variational autoencoders: images (B, 3, H, W) in [0, 1] to Gaussians of latents, latents to images.

    A subclass defines `posterior` and `decode`; decoded images may leave [0, 1].
    """

    def forward(self, z: Tensor) -> Tensor:
        """Refuse to decode: a model denoises normalized latents.

        Raises:
            ValueError: naming `LatentSpace`.
        """
        raise ValueError(
            f"a {type(self).__name__} decodes latents that are not normalized; name a LatentSpace with this vae as the "
            "decoder of a model"
        )

    @abstractmethod
    def posterior(self, x: Tensor) -> Posterior:
        """Return the posterior of images `x` (B, 3, H, W) in [0, 1]."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior mean (B, C, h, w) of `x` (B, 3, H, W) in [0, 1]."""
        return self.posterior(x).mean


class DiffusersVAE(VariationalAutoencoder, FrozenNetwork):
    """`AutoencoderKL` of the diffusers library, loaded at first use.

    Gradients recompute the activations of its blocks, which takes a third more time and a fraction of the memory.
    """

    def __init__(
        self,
        path: str,
        *,
        subfolder: str | None = None,
        lowest: float = 0.0,
        tile: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        """Choose the model.

        Args:
            path: folder written by `save_pretrained`, or a name on the Hugging Face hub.
            subfolder: folder inside of it, such as "vae".
            lowest: value of black for the model, with white 1: 0 as in EDM2's data, -1 for most models.
            tile: larger latents are decoded in tiles of this side, overlapping by a quarter and blended by the library:
                less memory for nearly the same image, since each tile has its own normalization. None: whole.
            dtype: precision of the network; images, latents and gradients stay float32. float16 is not offered: small
                gradients vanish in it, and SDXL's autoencoder overflows.

        Raises:
            ValueError: if `lowest` is not below 1, `tile` is no positive multiple of 4, or there is no such `dtype`.
        """
        super().__init__()
        if not lowest < 1:
            raise ValueError(f"DiffusersVAE: lowest is {lowest}; expected the model's black, 0 or -1, below white, 1")
        if tile is not None and (tile < 4 or tile % 4):
            raise ValueError(f"DiffusersVAE: tile is {tile}; expected a multiple of 4, such as 64, or null")
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"DiffusersVAE: dtype is {dtype!r}; expected float32 or bfloat16")
        self.path, self.subfolder, self.lowest, self.tile, self.dtype = path, subfolder, lowest, tile, dtype

    def posterior(self, x: Tensor) -> Posterior:
        """Return the posterior of images `x` (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: if diffusers is not installed or the model cannot be loaded.
        """
        network = self.network(x)
        gaussian = network.encode((self.lowest + (1 - self.lowest) * x).to(network.dtype)).latent_dist
        return Posterior(gaussian.mean.to(x.dtype), gaussian.std.to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), approximately in [0, 1], of the latents `z` (B, C, h, w).

        Raises:
            ValueError: as `posterior`, or if `z` has another number of channels.
        """
        network = self.network(z)
        channels = network.config.latent_channels
        if z.ndim != 4 or z.shape[1] != channels:
            raise ValueError(
                f"the autoencoder in {self.path} decodes latents ({channels}, h, w), got {tuple(z.shape[1:])}"
            )
        tiled, low = self.tile is not None and max(z.shape[2:]) > self.tile, z.to(network.dtype)
        images: Tensor = (network.tiled_decode(low) if tiled else network.decode(low)).sample.to(z.dtype)
        return (images - self.lowest) / (1 - self.lowest)

    def _load(self) -> nn.Module:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise ValueError(
                "DiffusersVAE needs the diffusers library, which is not installed; install it with "
                "`pip install lightning-guide[latents]`"
            ) from None
        folder = Path(self.path, self.subfolder or "").expanduser()
        if Path(self.path).expanduser().is_dir():
            check_part(folder, "diffusion_pytorch_model")
        options: dict[str, Any] = {} if self.subfolder is None else {"subfolder": self.subfolder}
        if self.dtype != "float32":
            options["torch_dtype"] = getattr(torch, self.dtype)
        try:
            model, report = AutoencoderKL.from_pretrained(
                self.path, use_safetensors=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"no AutoencoderKL can be loaded from {self.path!r} (safetensors): {reason}") from None
        if wrong := sorted([*report["missing_keys"], *report["unexpected_keys"]]):
            raise ValueError(f"the weights of the AutoencoderKL in {self.path!r} do not fit its config: {wrong[0]}")
        if self.tile is not None:
            factor = 2 ** (len(model.config.block_out_channels) - 1)
            model.tile_latent_min_size, model.tile_sample_min_size = self.tile, factor * self.tile
        model.enable_gradient_checkpointing()
        loaded: nn.Module = model
        return loaded
