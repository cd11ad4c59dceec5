"""Pictures: encoded files to uint8 RGB, and shrinking by the mean over areas; samples as they were written."""

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


# The names of files that are taken for pictures.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


# What PIL raises for files that are no pictures, or no whole ones.
_REFUSALS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UndecodableError(ValueError):
    """A file that is no readable picture."""


def decode_image(data: bytes) -> Tensor:
    """The picture in `data`, uint8 (3, H, W).

    Raises:
        UndecodableError: if `data` is not a whole picture in a format that PIL reads.
    """
    quick = _decoded_directly(data)
    if quick is not None:
        return quick
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return from_pil(image)
    except _REFUSALS as error:
        raise UndecodableError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Why PIL refuses a file, without the addresses in memory that it names."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture in a format that PIL reads"
    return f"{type(error).__name__}: {error}"


def _decoded_directly(data: bytes) -> Tensor | None:
    """The picture in `data` by the decoders inside torchvision, in a third of PIL's time; None for PIL to decide.

    Only RGB as JPEG, or as PNG of 8 bits a channel, where both give the same bits: what is rarer or damaged is for PIL,
    and so is everything where torchvision has no decoders (any more).
    """
    jpeg = data.startswith(b"\xff\xd8\xff")
    if not jpeg and not (data.startswith(b"\x89PNG\r\n\x1a\n") and data[24:26] == b"\x08\x02"):
        return None
    try:
        decode = torch.ops.image.decode_jpeg if jpeg else torch.ops.image.decode_png
        picture: Tensor = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, False)
    except (RuntimeError, AttributeError):
        return None
    return picture if picture.shape[0] == 3 else None


def decode_sample(data: bytes) -> Tensor:
    """The sample in `data` as `lightning_guide.utils.images` wrote it: npy, or a picture, which stays gray if it is.

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
    except _REFUSALS as error:
        raise UndecodableError(_reason(error)) from None


def from_pil(image: Image.Image) -> Tensor:
    """A PIL picture as uint8 RGB (3, H, W).

    Gray is repeated, CMYK and palettes are converted, transparency is dropped. 16 bits become round(v / 257) in gray;
    in color PIL keeps the upper eight of them.
    """
    if image.mode.startswith("I"):
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257
        return torch.from_numpy(gray.astype(np.uint8)).expand(3, -1, -1).contiguous()
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def from_array(pixels: object) -> Tensor:
    """A uint8 array (H, W) or (H, W, C), or a uint8 tensor (C, H, W), with C = 1 or 3, as RGB (3, H, W).

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
            f"the picture is a {type(pixels).__name__}{shape}; expected a PIL image, a uint8 array (H, W) or (H, W, C) "
            "or a uint8 tensor (C, H, W), with 1 or 3 channels"
        )
    return x.expand(3, -1, -1).contiguous()


def shrink(x: Tensor, size: int) -> Tensor:
    """The central square of a picture uint8 (C, H, W), averaged over areas to uint8 (C, size, size).

    Each new pixel is the exact mean over its area of the old picture, rounded half up; where the side is a
    multiple of `size` this is the mean of a block of pixels.

    Raises:
        ValueError: if the shorter side is below `size`; pictures are never enlarged.
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
    return mean.add_(0.5).to(torch.uint8)  # cut off, that is rounded half up


def _overlaps(old: int, new: int) -> Tensor:
    """How much of each of `old` pixels lies in each of `new` ones, (new, old), in units of 1 / new of an old pixel.

    Whole numbers, so that the means computed with them are exact; each row has the sum `old`.
    """
    a = torch.arange(new, dtype=torch.float64)[:, None] * old
    b = torch.arange(old, dtype=torch.float64)[None, :] * new
    return (torch.minimum(a + old, b + new) - torch.maximum(a, b)).clip(min=0)
