"""The space of a latent diffusion model: normalization of latents, and images of what the model denoises.

Rombach et al. 2022, https://arxiv.org/abs/2112.10752. Evaluations decode samples by it; objectives, rewards and
gradient guidance look through it, with gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "LatentSpace"]


# Moments of ImageNet's latents under stabilityai/sd-vae-ft-mse with inputs in [0, 1], as used by EDM2.
IMAGENET_MEAN = (5.81, 3.25, 0.12, -2.15)
IMAGENET_STD = (4.17, 4.62, 3.71, 3.28)


class LatentSpace(HasRecipe, nn.Module):
    """Normalized latents x = (z - mean) / (2 std), channel by channel, with sigma_data = 0.5; `vae` decodes images.

    A published model with x = scaling (z - shift) has mean = shift and std = 1 / (2 scaling): 2.74499 for Stable
    Diffusion's 0.18215, for example; its x has a standard deviation of about 1.

    Examples:
        >>> space = LatentSpace(None, mean=0.0609, std=1 / (2 * 1.5305))
        >>> round(float(space.encode(torch.ones(1, 16, 2, 2))[0, 0, 0, 0]), 4)  # 1.5305 (1 - 0.0609)
        1.4373
    """

    def __init__(
        self,
        vae: VariationalAutoencoder | None,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        *,
        decode_batch: int = 16,
    ) -> None:
        """Set the normalization.

        Args:
            vae: the autoencoder; None: latents stay latents.
            mean: of the latents z, one number for each channel, or one for all.
            std: standard deviation of the latents z, likewise.
            decode_batch: number of latents decoded in one call; gradients of more than one call recompute each.

        Raises:
            ValueError: if the numbers of means and deviations differ, one is not finite, a deviation is not positive,
                or `decode_batch` is below 1.
        """
        super().__init__()
        means, stds = ([each] if isinstance(each, int | float) else list(each) for each in (mean, std))
        finite = all(map(math.isfinite, [*means, *stds]))
        if len(means) != len(stds) or not means or not finite or min(stds) <= 0 or decode_batch < 1:
            raise ValueError(
                "latents need as many numbers in mean as in std, all finite, all std > 0, and decode_batch >= 1; "
                f"got {means}, {stds} and {decode_batch}"
            )
        self.vae, self.decode_batch = vae, decode_batch
        self.mean, self.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (means, stds))

    def encode(self, z: Tensor) -> Tensor:
        """Normalize latents `z` to x (B, C, h, w), float32."""
        mean, std = (to_device(each, z.device) for each in (self.mean, self.std))
        return (z.to(torch.float32) - mean) / (2 * std)

    def latent(self, x: Tensor) -> Tensor:
        """Return the latents z (B, C, h, w) of x, in the dtype of `x`."""
        mean, std = (to_device(each, x.device).to(x.dtype) for each in (self.mean, self.std))
        return x * (2 * std) + mean

    def forward(self, x: Tensor) -> Tensor:
        """Return images (B, 3, H, W), approximately in [-1, 1], of x (B, C, h, w), differentiable.

        Raises:
            ValueError: without an autoencoder, or if `x` has another number of channels.
        """
        if self.vae is None:
            raise ValueError("LatentSpace decodes images by its vae, which is None here")
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(f"these latents have {len(self.mean)} channels, got x of shape {tuple(x.shape)}")
        decode, parts = self.vae.to(x.device).decode, self.latent(x).split(self.decode_batch)
        if len(parts) > 1 and x.requires_grad:
            images = [checkpoint(decode, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            images = [decode(part) for part in parts]
        return 2 * torch.cat(images).to(x.dtype) - 1

    def decode(self, x: Tensor) -> Tensor:
        """Decode x to images uint8 (B, 3, H, W), clipped; without an autoencoder to latents z, float32."""
        x = x.to(torch.float32)
        if self.vae is None:
            return self.latent(x)
        with torch.no_grad():
            return ((self(x).clip(-1, 1) + 1) * 127.5).round().to(torch.uint8)
