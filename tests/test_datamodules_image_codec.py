"""Decoding and shrinking of pictures against PIL and against sums of whole numbers."""

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
    _decoded_directly,
    decode_image,
    decode_sample,
    from_array,
    from_pil,
    shrink,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_png_decodes_as_pil_does(mode: str) -> None:
    """Exactly, for every kind of PNG with up to 8 bits."""
    image = Image.fromarray(PIXELS).convert(mode)
    x = decode_image(encoded(image, "PNG"))
    assert x.dtype == torch.uint8 and x.shape == (3, 12, 10)
    assert np.array_equal(x.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP")])
def test_lossy_files_decode_as_pil_does(mode: str, kind: str) -> None:
    """Gray and CMYK become RGB."""
    data = encoded(Image.fromarray(PIXELS).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_become_eight() -> None:
    """round(v / 257), in gray."""
    gray = np.array([[0, 128, 129, 257], [25700, 65535, 65407, 65406]], dtype=np.uint16)
    x = decode_image(encoded(Image.fromarray(gray), "PNG"))
    assert x.tolist() == [[[0, 0, 1, 1], [100, 255, 255, 254]]] * 3


def test_of_sixteen_bits_in_color_the_upper_eight_are_kept() -> None:
    """Of a PNG, which PIL cannot write: a header, one row without a filter, the end."""
    row = np.array([0, 255, 256, 25700, 65535, 65407], dtype=">u2")  # two pixels

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes())) + chunk(b"IEND", b"")
    x = decode_image(b"\x89PNG\r\n\x1a\n" + parts)
    assert x.movedim(0, -1).tolist() == [[[0, 0, 1], [100, 255, 255]]]


def test_why_a_file_is_no_picture_is_said_without_addresses() -> None:
    for decode in (decode_image, decode_sample):
        with pytest.raises(UndecodableError, match="^no picture in a format that PIL reads$"):
            decode(b"not a picture")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_corrupt_files_are_recognized(kind: str) -> None:
    """Cut off, empty, and no picture at all."""
    whole = encoded(Image.fromarray(PIXELS), kind)
    for data in (whole[: len(whole) // 2], whole[:4], b"", b"not a picture"):
        with pytest.raises(UndecodableError):
            decode_image(data)


@pytest.mark.parametrize(("side", "size"), [(32, 8), (9, 3), (12, 2), (10, 10), (10, 4), (7, 5)])
def test_shrinking_is_the_exact_mean_over_areas(side: int, size: int) -> None:
    """Against each old pixel split into size x size equal parts and whole-number means of side x side blocks."""
    x = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    parts = x.to(torch.int64).repeat_interleave(size, 1).repeat_interleave(size, 2)
    sums = parts.reshape(3, size, side, size, side).sum((2, 4))
    assert torch.equal(shrink(x, size), ((2 * sums + side**2) // (2 * side**2)).to(torch.uint8))


def test_shrinking_crops_to_the_central_square() -> None:
    """Wide and tall pictures alike."""
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
    """One sentence with what was found."""
    with pytest.raises(ValueError, match="expected a PIL image, a uint8 array"):
        from_array(pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_quick_way_is_taken_and_refuses_what_is_cut_off(kind: str) -> None:
    """Wherever a file is cut, the two ways agree that it is no picture."""
    whole = encoded(Image.fromarray(PIXELS), kind)
    quick = _decoded_directly(whole)
    assert quick is not None
    with Image.open(io.BytesIO(whole)) as image:
        assert torch.equal(quick, from_pil(image))
    for length in range(len(whole) - 2):
        try:
            with Image.open(io.BytesIO(whole[:length])) as image:
                image.load()
        except (OSError, SyntaxError):
            assert _decoded_directly(whole[:length]) is None
            with pytest.raises(UndecodableError):
                decode_image(whole[:length])


def test_what_is_rare_is_left_to_pil() -> None:
    """Gray, palettes, transparency, 16 bits."""
    picture = Image.fromarray(PIXELS)
    for rare in (picture.convert("L"), picture.convert("P"), picture.convert("RGBA")):
        assert _decoded_directly(encoded(rare, "PNG")) is None
    assert _decoded_directly(encoded(picture.convert("CMYK"), "JPEG")) is None
    transparent = io.BytesIO()
    picture.save(transparent, "PNG", transparency=(1, 2, 3))
    assert torch.equal(decode_image(transparent.getvalue()), torch.from_numpy(PIXELS.copy()).permute(2, 0, 1))
