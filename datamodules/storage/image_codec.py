"""Image decoding to uint8 RGB, shrinking by the mean over areas, and decoding of stored samples."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision import io as _decoders  # noqa: F401, registers torch.ops.image

__all__ = ["SUFFIXES", "UndecodableError", "decode_image", "decode_sample", "from_array", "from_pil", "shrink"]


# Extensions of image files.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# Errors of PIL for files that are not complete images.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UndecodableError(ValueError):
    """A file that is not a readable image."""


def decode_image(data: bytes) -> Tensor:
    """Decode the image in `data` to uint8 (3, H, W).

    Raises:
        UndecodableError: if `data` is not a complete image in a format that PIL reads.
    """
    image = _decode_directly(data)
    if image is not None:
        return image
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            return from_pil(file)
    except _DECODING_ERRORS as error:
        raise UndecodableError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Return PIL's reason for refusing a file, without memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that PIL reads"
    return f"{type(error).__name__}: {error}"


def _decode_directly(data: bytes) -> Tensor | None:
    """Decode the image in `data` by torchvision, in a third of PIL's time; None if PIL must decode it.

    Limited to RGB in JPEG, or in PNG of 8 bits a channel, where both give the same bits. Other formats and damaged
    files are left to PIL, as are all files if this torchvision has no decoders.
    """
    jpeg = data.startswith(b"\xff\xd8\xff")
    if not jpeg and not (data.startswith(b"\x89PNG\r\n\x1a\n") and data[24:26] == b"\x08\x02"):
        return None
    try:
        decode = torch.ops.image.decode_jpeg if jpeg else torch.ops.image.decode_png
        image: Tensor = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, False)
    except (RuntimeError, AttributeError):
        return None
    return image if image.shape[0] == 3 else None


def decode_sample(data: bytes) -> Tensor:
    """Decode a sample written by `lightning_guide.utils.images`: npy, or an image; gray images keep one channel.

    Raises:
        UndecodableError: if `data` is neither.
    """
    try:
        if data.startswith(b"\x93NUMPY"):
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.ndim == 0 or not np.issubdtype(array.dtype, np.number):
                raise ValueError(f"an array of shape {array.shape} and type {array.dtype}")
            return torch.from_numpy(array)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return torch.from_numpy(np.array(image))[None] if image.mode == "L" else from_pil(image)
    except _DECODING_ERRORS as error:
        raise UndecodableError(_reason(error)) from None


def from_pil(image: Image.Image) -> Tensor:
    """Convert a PIL image to uint8 RGB (3, H, W).

    Gray is repeated, CMYK and palettes are converted, transparency is dropped. In gray images 16 bits
    become round(v / 257); in color PIL keeps the upper eight bits.
    """
    if image.mode.startswith("I"):
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257
        return torch.from_numpy(gray.astype(np.uint8)).expand(3, -1, -1).contiguous()
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def from_array(pixels: object) -> Tensor:
    """Convert a uint8 array (H, W) or (H, W, C), or a uint8 tensor (C, H, W), C = 1 or 3, to RGB (3, H, W).

    Raises:
        ValueError: for anything else.
    """
    x = pixels
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim in (2, 3):
        x = torch.from_numpy(pixels.copy())
        x = x[None] if x.ndim == 2 else x.movedim(-1, 0)
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 3 or len(x) not in (1, 3):
        shape = f" of {getattr(pixels, 'dtype', None)}, shape {tuple(getattr(pixels, 'shape', ()))}"
        raise ValueError(
            f"the image is a {type(pixels).__name__}{shape}; expected a PIL image, a uint8 array (H, W) or (H, W, C) "
            "or a uint8 tensor (C, H, W), with 1 or 3 channels"
        )
    return x.expand(3, -1, -1).contiguous()


def shrink(x: Tensor, size: int) -> Tensor:
    """Crop an image uint8 (C, H, W) to its central square, and average it over areas to uint8 (C, size, size).

    Each new pixel is the exact mean over its area of the old image, rounded half up; for a side that is a multiple of
    `size` this is the mean of a block of pixels.

    Raises:
        ValueError: if the shorter side is below `size`; images are never enlarged.
    """
    height, width = x.shape[-2:]
    side = min(height, width)
    if side < size:
        raise ValueError(f"{height}x{width} pixels cannot be shrunk to {size}x{size}; expected {size} or more a side")
    top, left = (height - side) // 2, (width - side) // 2
    square = x if height == width else x[:, top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    if side % size == 0:
        mean = F.avg_pool2d(square.to(torch.float32), side // size)
    else:
        overlap = _overlaps(side, size)  # (size, side)
        mean = overlap @ square.to(torch.float64) @ overlap.T / side**2
    return mean.add_(0.5).to(torch.uint8)  # truncation rounds half up


def _overlaps(old: int, new: int) -> Tensor:
    """Return the overlap of each of `old` pixels with each of `new` ones, (new, old), in units of 1 / new old pixels.

    Integers, so that means computed with them are exact; each row sums to `old`.
    """
    a = torch.arange(new, dtype=torch.float64)[:, None] * old
    b = torch.arange(old, dtype=torch.float64)[None, :] * new
    return (torch.minimum(a + old, b + new) - torch.maximum(a, b)).clip(min=0)
