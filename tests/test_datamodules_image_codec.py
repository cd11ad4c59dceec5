"""Decoding and shrinking of images against PIL and integer arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.storage.image_codec import (
    UndecodableError,
    _decode_directly,
    decode_image,
    decode_sample,
    from_array,
    from_pil,
    shrink,
)
from tests.image_files import encoded, exif, gray_profile

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_png_decodes_as_in_pil(mode: str) -> None:
    """Exactly, for every kind of PNG with up to 8 bits."""
    image = Image.fromarray(PIXELS).convert(mode)
    x = decode_image(encoded(image, "PNG"))
    assert x.dtype == torch.uint8 and x.shape == (3, 12, 10)
    assert np.array_equal(x.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP")])
def test_lossy_files_decode_as_in_pil(mode: str, kind: str) -> None:
    """Gray and CMYK become RGB."""
    data = encoded(Image.fromarray(PIXELS).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_become_eight() -> None:
    """round(v / 257), in gray."""
    gray = np.array([[0, 128, 129, 257], [25700, 65535, 65407, 65406]], dtype=np.uint16)
    x = decode_image(encoded(Image.fromarray(gray), "PNG"))
    assert x.tolist() == [[[0, 0, 1, 1], [100, 255, 255, 254]]] * 3


def test_sixteen_bit_color_keeps_upper_eight_bits() -> None:
    """A PNG that PIL cannot write: a header, one row without a filter, the end."""
    row = np.array([0, 255, 256, 25700, 65535, 65407], dtype=">u2")  # two pixels

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes())) + chunk(b"IEND", b"")
    x = decode_image(b"\x89PNG\r\n\x1a\n" + parts)
    assert x.movedim(0, -1).tolist() == [[[0, 0, 1], [100, 255, 255]]]


def test_decoding_error_has_no_memory_addresses() -> None:
    for decode in (decode_image, decode_sample):
        with pytest.raises(UndecodableError, match=r"^not an image in a format that is read \(JPEG, PNG, .*, PPM\)$"):
            decode(b"not an image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_corrupt_files_are_recognized(kind: str) -> None:
    """Truncated, empty, and not an image."""
    content = encoded(Image.fromarray(PIXELS), kind)
    for data in (content[: len(content) // 2], content[:4], b"", b"not an image"):
        with pytest.raises(UndecodableError):
            decode_image(data)


@pytest.mark.parametrize(("side", "size"), [(32, 8), (9, 3), (12, 2), (10, 10), (10, 4), (7, 5)])
def test_shrinking_is_the_exact_mean_over_areas(side: int, size: int) -> None:
    """Against each old pixel split into size x size equal parts and integer means of side x side blocks."""
    x = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    parts = x.to(torch.int64).repeat_interleave(size, 1).repeat_interleave(size, 2)
    sums = parts.reshape(3, size, side, size, side).sum((2, 4))
    assert torch.equal(shrink(x, size), ((2 * sums + side**2) // (2 * side**2)).to(torch.uint8))


def test_shrinking_crops_to_the_central_square() -> None:
    """Wide and tall images alike."""
    x = torch.randint(0, 256, (3, 8, 14), dtype=torch.uint8)
    assert torch.equal(shrink(x, 4), shrink(x[:, :, 3:11], 4))
    assert torch.equal(shrink(x.mT, 4), shrink(x[:, :, 3:11], 4).mT)
    with pytest.raises(ValueError, match="8x14 pixels cannot be shrunk to 9x9"):
        shrink(x, 9)


def test_arrays_and_pil_agree() -> None:
    """Arrays are (H, W[, C]), tensors (C, H, W)."""
    expected = from_pil(Image.fromarray(PIXELS))
    assert torch.equal(from_array(PIXELS), expected)
    assert torch.equal(from_array(torch.from_numpy(PIXELS).permute(2, 0, 1)), expected)
    assert torch.equal(from_array(PIXELS[:, :, 0]), expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    "pixels", [PIXELS.astype(np.float32), PIXELS[None], PIXELS[:, :, :2], [1, 2], torch.zeros(3, 2, 2)]
)
def test_unusable_arrays(pixels: object) -> None:
    """One sentence with the array found."""
    with pytest.raises(ValueError, match="expected a PIL image, a uint8 array"):
        from_array(pixels)


def test_direct_decoder_is_used_for_jpeg_and_refuses_truncated_files() -> None:
    """Both decoders refuse a file truncated at any byte."""
    content = encoded(Image.fromarray(PIXELS), "JPEG")
    direct = _decode_directly(content)
    assert direct is not None
    with Image.open(io.BytesIO(content)) as image:
        assert torch.equal(direct, from_pil(image))
    for length in range(len(content) - 2):
        with pytest.raises(UndecodableError):
            decode_image(content[:length])


@pytest.mark.parametrize("options", [{"exif": exif(1)}, {"icc_profile": gray_profile(2.2)}])
def test_rare_formats_are_left_to_pil(options: dict[str, Any]) -> None:
    """All but JPEG, gray, CMYK, EXIF, profiles."""
    image = Image.fromarray(PIXELS)
    assert _decode_directly(encoded(image, "PNG")) is None
    for rare in (image.convert("L"), image.convert("CMYK")):
        assert _decode_directly(encoded(rare, "JPEG")) is None
    data = encoded(image, "JPEG", **options)
    assert _decode_directly(data) is None
    assert torch.equal(decode_image(data), decode_image(encoded(image, "JPEG")))
