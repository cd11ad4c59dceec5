"""Image operations: preprocessing for pretrained networks, encoding as PNG or npy, Gaussian blur."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.utils.devices import to_device

__all__ = ["encode_png", "encode_sample", "from_pixels", "gaussian_blur", "preprocess_image", "to_pixels"]


def preprocess_image(
    image: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: Sequence[int] | None = None,
    channels: int | None = None,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Tensor:
    """Resize and normalize images for a pretrained network: (resized - mean) / std `(B, channels, *size)`.

    `image` (B, C, H, W) has values in [0, 1]; the result is differentiable. The whole image is resized to `size`
    (height, width), by `mode` and antialiased, not cropped; a single channel is repeated `channels` times. `mean` and
    `std` hold one number for each channel, or one for all.

    Raises:
        ValueError: if `image` has another number of channels than 1 or `channels`, as latents have.
    """
    if channels is not None:
        if image.ndim != 4 or image.shape[1] not in (1, channels):
            raise ValueError(
                f"this network reads images of 1 or {channels} channels, got x of shape {tuple(image.shape[1:])}; "
                "latents are decoded first, by Decoded with a LatentSpace"
            )
        image = image.expand(-1, channels, -1, -1)
    if size is not None:
        image = F.interpolate(image, tuple(size), mode=mode, align_corners=False, antialias=True)
    moments = (to_device(torch.tensor(each, dtype=image.dtype), image.device) for each in (mean, std))
    middle, spread = (each[:, None, None] for each in moments)
    return (image - middle) / spread


def from_pixels(raw: Tensor) -> Tensor:
    """Return x = raw / 127.5 - 1, float32, for images `raw` uint8 (B, C, H, W)."""
    return raw.to(torch.float32) / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """Return round(127.5 (x + 1)) clipped to 0..255, uint8 (B, C, H, W)."""
    return (x.to(torch.float32) * 127.5 + 127.5).round().clip(0, 255).to(torch.uint8)


def encode_png(image: Tensor) -> bytes:
    """Return the bytes of a PNG file of `image` (1 or 3, H, W), uint8.

    Raises:
        ValueError: if the shape or the type is another.
    """
    if not _is_image(image):
        raise ValueError(
            f"a PNG file holds an image of shape (1 or 3, H, W) and type torch.uint8, got {tuple(image.shape)} "
            f"and {image.dtype}"
        )
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def encode_sample(x: Tensor) -> tuple[str, bytes]:
    """Return extension and bytes of a file of one sample `x` (*data_shape): PNG for uint8 images, else npy.

    In npy files uint8 is kept, all other types become float32.
    """
    if _is_image(x):
        return "png", encode_png(x)
    file = io.BytesIO()
    np.save(file, (x if x.dtype == torch.uint8 else x.float()).contiguous().cpu().numpy())
    return "npy", file.getvalue()


def _is_image(x: Tensor) -> bool:
    return x.dtype == torch.uint8 and x.ndim == 3 and x.shape[0] in (1, 3)


def gaussian_blur(
    x: Tensor, *, sigma: float, radius: int, border: Literal["reflect", "replicate"] = "reflect"
) -> Tensor:
    """Gaussian blur: `x` (B, C, H, W) convolved with exp(-i^2 / 2 sigma^2), |i| <= radius, normalized, along both axes.

    `sigma` and `radius` are in pixels; along a side of n pixels the radius is n - 1 at most. Beyond the `border` the
    image is reflected without repeating the outermost pixel, or that pixel is replicated.
    """
    C = x.shape[1]
    for axis in (2, 3):
        reach = min(radius, x.shape[axis] - 1)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
        taps = to_device((taps / taps.sum()).to(x.dtype), x.device)
        shape, padding = ((-1, 1), (0, 0, reach, reach)) if axis == 2 else ((1, -1), (reach, reach, 0, 0))
        x = F.conv2d(F.pad(x, padding, mode=border), taps.reshape(1, 1, *shape).expand(C, -1, -1, -1), groups=C)
    return x
