"""Pixels of an image as viewers show them: upright, in sRGB, 8 bits a channel, on white."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from datamodules.storage.image_headers import exif_orientation

__all__ = ["from_pil"]

Pixels = np.ndarray[Any, Any]

_COLOR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue
_SRGB_GAMMA = 0.45455


def from_pil(image: Image.Image) -> Tensor:
    """Convert a PIL image to uint8 RGB (3, H, W), as viewers show it.

    - The orientation of EXIF is applied.
    - Embedded ICC profiles are converted to sRGB, a profile of another color space than the image's is ignored; gAMA of
      PNG is converted. CMYK and gray without a profile are converted or repeated.
    - Transparent pixels are blended with white, in the stored values: round(a c + (1 - a) 255).
    - In gray images 16 bits become round(v / 257) and floats in [0, 1] become round(255 v); of 16 bits in color PIL
      keeps the upper eight.

    Raises:
        ValueError: for pixels whose black and white are not known: integers of 32 bits or with a sign, floats beyond
            [0, 1] or not finite, colors outside sRGB without a profile; for a damaged profile.
        OSError: if the file is damaged, as other exceptions of PIL.
    """
    image.load()
    color, alpha = _without_alpha(image)
    pixels = _in_srgb(color, image.info)
    if alpha is not None:
        a = alpha[:, :, None].astype(np.uint32)
        pixels = ((pixels * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)
    return torch.from_numpy(_upright(pixels, image).transpose(2, 0, 1).copy())


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Pixels | None]:
    """Return an image of a mode in `_COLOR_SPACES`, and alpha (H, W) uint8 if there is any."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_gray(image)), _transparent_value(image)
    if tuple(_tag(image, 339, (1,)))[:1] == (2,):
        raise ValueError("its numbers have a sign; expected 0 for black")
    if image.has_transparency_data:
        if image.mode == "RGB" and max(image.info["transparency"]) > 255:
            raise ValueError("a transparent color of 16 bits; expected 8 bits, or a channel of transparency")
        gray = image.mode in ("L", "LA", "La", "1")
        both = image.convert("LA" if image.mode == "La" else "RGBA")
        return both.convert("L" if gray else "RGB"), np.asarray(both.getchannel("A"))
    if image.mode == "1":
        return image.convert("L"), None
    return image if image.mode in _COLOR_SPACES else image.convert("RGB"), None


def _gray(image: Image.Image) -> Pixels:
    """Return gray (H, W) uint8 of integers of 12 or 16 bits or of floats."""
    v = np.asarray(image)
    if image.mode == "F":
        low, high = (float(f(v)) for f in (np.min, np.max))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its floats range from {low:g} to {high:g}; expected 0 (black) to 1 (white)")
        gray = np.floor(v.astype(np.float64) * 255 + 0.5)
    else:
        bits = tuple(_tag(image, 258, (16,)))[0]
        if tuple(_tag(image, 339, (1,)))[0] != 1 or bits > 16:
            raise ValueError(f"its integers have {bits} bits or a sign; expected 16 bits and 0 for black")
        white = 2 ** int(bits) - 1
        wide = v.astype(np.int64)
        if wide.min() < 0 or wide.max() > white:
            raise ValueError(f"its integers range from {wide.min()} to {wide.max()}; expected 0 to {white}")
        gray = (wide * 510 + white) // (2 * white)
    return (255 - gray if _tag(image, 262, 1) == 0 else gray).astype(np.uint8)


def _transparent_value(image: Image.Image) -> Pixels | None:
    """Return alpha (H, W) of a gray image of 16 bits, of which one value is transparent."""
    value = image.info.get("transparency")
    return None if value is None else np.where(np.asarray(image) == value, 0, 255).astype(np.uint8)


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    """Return a tag of a TIFF, `default` if it has none or for another format."""
    return getattr(image, "tag_v2", {}).get(tag, default)


def _in_srgb(image: Image.Image, info: dict[Any, Any]) -> Pixels:
    """Return sRGB (H, W, 3) of an image of a mode in `_COLOR_SPACES` with the profile in `info`."""
    transform = _transform(info.get("icc_profile") or b"", image.mode)
    if transform is not None:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return np.asarray(converted)
    pixels = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
    pixels = pixels[:, :, None].repeat(3, 2) if pixels.ndim == 2 else pixels
    if "gamma" not in info or "srgb" in info or "icc_profile" in info:
        return pixels
    primaries = info.get("chromaticity", _SRGB_PRIMARIES)
    if max(abs(a - b) for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True)) > 0.01:
        raise ValueError(f"its primaries (cHRM) are {primaries}, without a profile; expected those of sRGB")
    return pixels if abs(info["gamma"] - _SRGB_GAMMA) < 0.02 else _with_gamma(pixels, info["gamma"])


def _with_gamma(pixels: Pixels, gamma: float) -> Pixels:
    """Convert light^gamma, uint8, to sRGB."""
    if not 0.1 < gamma < 10:
        raise ValueError(f"its gAMA is {gamma:g}; expected about 0.45455")
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.floor(curve * 255 + 0.5).astype(np.uint8)[pixels]


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion from `profile` to sRGB; None if there is none to do, up to rounding."""
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else None
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError(f"its color profile is damaged: {error}") from None
    if source is not None and source.profile.xcolor_space.strip() != _COLOR_SPACES[mode]:
        source = None
    if source is None and mode == "LAB":
        source = ImageCms.createProfile("LAB")
    if source is None:
        return None
    try:
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError(f"its color profile cannot be used: {error}") from None
    if mode not in ("L", "RGB"):
        return transform
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    shape = (18, 18, 18)[: 1 if mode == "L" else 3]
    grid = np.stack(np.meshgrid(*[steps] * len(shape), indexing="ij"), -1).reshape(1, -1, len(shape))
    colors = Image.fromarray(np.ascontiguousarray(grid[..., 0] if mode == "L" else grid))
    converted = ImageCms.applyTransform(colors, transform)
    assert converted is not None
    return None if np.abs(np.asarray(converted).astype(int) - grid.astype(int)).max() <= 1 else transform


def _upright(pixels: Pixels, image: Image.Image) -> Pixels:
    """Turn (H, W, 3) upright by the orientation of EXIF; PIL itself turns TIFF files."""
    orientation = 1 if image.format == "TIFF" else exif_orientation(image.info.get("exif") or b"")
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
