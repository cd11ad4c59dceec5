"""Small image-to-image networks: segmentation, sketching, and an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.utils.recipe import HasRecipe

__all__ = ["ImageAutoencoder", "ImageToImageNetwork"]


_GROUPS = 8


def _block(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.SiLU()]


def _check(name: str, data_shape: Sequence[int], widths: Sequence[int], out: int) -> None:
    """Raise ValueError unless the sizes fit."""
    if len(data_shape) != 3 or not widths or any(width < 1 or width % _GROUPS for width in widths) or out < 1:
        raise ValueError(
            f"{name} needs data_shape (C, H, W), widths in multiples of {_GROUPS} and at least one channel out, got "
            f"{tuple(data_shape)}, {list(widths)} and {out}"
        )


class ImageToImageNetwork(HasRecipe, nn.Module):
    """Image-to-image network at full size: `blocks` of convolutions with group normalization, then a 1x1 `head`."""

    def __init__(self, data_shape: Sequence[int], out_channels: int, *, widths: Sequence[int] = (32, 32, 32)) -> None:
        """Build the network for `data_shape` (C, H, W) with `out_channels`; weights come from the global generator.

        Raises:
            ValueError: if the sizes do not fit.
        """
        super().__init__()
        _check("ImageToImageNetwork", data_shape, widths, out_channels)
        self.data_shape, self.out_channels = tuple(data_shape), out_channels
        sizes = [data_shape[0], *widths]
        blocks = [layer for pair in zip(sizes, widths, strict=False) for layer in _block(*pair)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(sizes[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, out_channels, H, W)` for `x` (B, C, H, W) in [-1, 1]."""
        y: Tensor = self.head(self.blocks(x))
        return y


class ImageAutoencoder(HasRecipe, nn.Module):
    """Image autoencoder with a latent of `latent_channels` at 1 / 2^(n - 1) of the size for n widths."""

    def __init__(
        self, data_shape: Sequence[int], latent_channels: int = 4, *, widths: Sequence[int] = (32, 64, 64)
    ) -> None:
        """Build the network for `data_shape` (C, H, W), with H and W divisible by 2^(n - 1).

        Weights come from the global generator.

        Raises:
            ValueError: if the sizes do not fit.
        """
        super().__init__()
        _check("ImageAutoencoder", data_shape, widths, latent_channels)
        factor = 2 ** (len(widths) - 1)
        if data_shape[1] % factor or data_shape[2] % factor:
            sides = tuple(data_shape[1:])
            raise ValueError(f"{len(widths)} widths of ImageAutoencoder divide the sides by {factor}, not {sides}")
        self.data_shape, self.latent_channels = tuple(data_shape), latent_channels
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        channels = data_shape[0]
        for i, width in enumerate(widths):
            down += [nn.AvgPool2d(2)] if i else []
            down += _block(channels, width)
            channels = width
        for i, width in enumerate(reversed(widths)):
            up += [nn.Upsample(scale_factor=2)] if i else []
            up += _block(latent_channels if not i else channels, width)
            channels = width
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], latent_channels, 1))
        self.decoder = nn.Sequential(*up, nn.Conv2d(widths[0], data_shape[0], 3, padding=1))

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent (B, latent_channels, h, w) of `x` (B, C, H, W)."""
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return the image (B, C, H, W) of the latent `z`."""
        x: Tensor = self.decoder(z)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return decode(encode(x))."""
        return self.decode(self.encode(x))
