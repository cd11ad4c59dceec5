"""Image decoding to uint8 RGB, shrinking by the mean over areas, and decoding of stored samples."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor
from torch.nn import functional as F
from torchvision import io as _decoders  # noqa: F401, registers torch.ops.image

from datamodules.storage.image_colors import from_pil
from datamodules.storage.image_headers import check_png, jpeg_frame
from lightning_guide.utils.arrays import read_array

__all__ = ["SUFFIXES", "UndecodableError", "decode_image", "decode_sample", "from_array", "from_pil", "shrink"]


# Extensions of image files.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# Readers by the first bytes. Others that PIL has are never tried: some run programs.
_READERS: tuple[tuple[bytes, str, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
    (b"RIFF", "WebP", WebPImagePlugin.WebPImageFile),
    (b"GIF8", "GIF", GifImagePlugin.GifImageFile),
    (b"II", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"MM", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"BM", "BMP", BmpImagePlugin.BmpImageFile),
    (b"P", "PPM", PpmImagePlugin.PpmImageFile),
)

_MOST_PIXELS = 2**28  # a file of a few bytes can claim more than any memory holds


class UndecodableError(ValueError):
    """A file that is not a readable image."""


def decode_image(data: bytes) -> Tensor:
    """Decode the image in `data` to uint8 (3, H, W), as viewers show it (`from_pil`); of animations the first frame.

    Raises:
        UndecodableError: if `data` is not a complete image in one of the formats of `SUFFIXES`, a checksum in it
            differs, or its colors cannot be converted.
    """
    try:
        image = _decode_directly(data)
        return from_pil(_open(data)) if image is None else image
    except Exception as error:  # PIL raises many types for damaged files
        raise UndecodableError(_reason(error)) from None


def _open(data: bytes) -> Image.Image:
    """Return the decoded PIL image in `data`."""
    found = next(((kind, reader) for start, kind, reader in _READERS if data.startswith(start)), None)
    if found is None:
        raise ValueError(f"not an image in a format that is read ({', '.join(dict.fromkeys(r[1] for r in _READERS))})")
    kind, reader = found
    if kind == "PNG":
        check_png(data)
    if kind == "JPEG":
        jpeg_frame(data)
    with _quiet() if kind == "TIFF" or b"Exif\0" in data or b"acTL" in data else nullcontext():
        try:
            image = reader(io.BytesIO(data))
        except SyntaxError as error:
            raise ValueError(f"a {kind} whose header is damaged or of an unknown kind: {error}") from None
        _check_size(*image.size)
        image.load()
    return image


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore PIL's warnings of odd metadata; a change of filters for each image would repeat all other warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_size(width: int, height: int) -> None:
    """Refuse an image that could not be held in memory."""
    if width * height > _MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than 2^28")


def _reason(error: Exception) -> str:
    """Return the reason for refusing a file in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _decode_directly(data: bytes) -> Tensor | None:
    """Decode the image in `data` by torchvision, in a fifth to two thirds of PIL's time; None if PIL must decode it.

    Limited to RGB in JPEG without EXIF and profile, where both give the same bits. Its decoder of PNG is never used:
    a damaged file ends the process.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    frame = jpeg_frame(data)
    _check_size(frame.width, frame.height)
    if not frame.plain or frame.channels != 3:
        return None
    try:
        image: Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, False)
    except (RuntimeError, AttributeError):  # damaged, or this torchvision has no decoders
        return None
    return image


def decode_sample(data: bytes) -> Tensor:
    """Decode a sample written by `lightning_guide.utils.images`: npy, or an image; gray images keep one channel.

    Raises:
        UndecodableError: if `data` is neither.
    """
    try:
        if data.startswith(b"\x93NUMPY"):
            array = read_array(data, "a sample")
            if array.dtype == bool:
                raise ValueError(f"an array of shape {array.shape} and type bool, expected numbers")
            return torch.from_numpy(array)
        image = _open(data)
        return torch.from_numpy(np.array(image))[None] if image.mode == "L" else from_pil(image)
    except Exception as error:  # as in `decode_image`
        raise UndecodableError(_reason(error)) from None


def from_array(pixels: object) -> Tensor:
    """Convert a uint8 array (H, W) or (H, W, C), or a uint8 tensor (C, H, W), C = 1 or 3, to RGB (3, H, W).

    Raises:
        ValueError: for anything else.
    """
    x = pixels
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim in (2, 3):
        x = torch.from_numpy(pixels.copy())
        x = x[None] if x.ndim == 2 else x.movedim(-1, 0)
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 3 or len(x) not in (1, 3) or not x.numel():
        shape = f" of {getattr(pixels, 'dtype', None)}, shape {tuple(getattr(pixels, 'shape', ()))}"
        raise ValueError(
            f"the image is a {type(pixels).__name__}{shape}; expected a PIL image, a uint8 array (H, W) or (H, W, C) "
            "or a uint8 tensor (C, H, W), with 1 or 3 channels and some pixels"
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
