"""Decoded pixels against constructed ones: orientation, profiles, transparency, bit depths."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from datamodules.storage.image_codec import UndecodableError, decode_image, decode_sample, from_pil
from tests.image_files import (
    chunk,
    cmyk_profile,
    encoded,
    exif,
    gray_profile,
    matrix_profile,
    png,
    tiff,
)

# Position of the first row and column of the stored image in the shown one, by orientation (EXIF 2.3, table 6).
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
BLOCKS = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
ADOBE_TO_XYZ = np.array(
    [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]]
)


def hwc(data: bytes) -> np.ndarray:
    """Decode an image; it has three channels of uint8."""
    x = decode_image(data)
    assert x.dtype == torch.uint8 and x.shape[0] == 3
    return x.permute(1, 2, 0).numpy()


def srgb(light: np.ndarray) -> np.ndarray:
    """Encode linear light by the curve of IEC 61966-2-1, 0 to 255."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF;LZW"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    image = Image.fromarray(BLOCKS)
    if kind.startswith("TIFF"):
        options: dict[str, Any] = {"tiffinfo": {274: orientation}, "compression": "tiff_lzw" if ";" in kind else None}
    else:
        options = {"exif": exif(orientation, "<>"[orientation % 2])}
        options |= {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
        options |= {"lossless": True} if kind == "WEBP" else {}
    shown = hwc(encoded(image, kind.split(";")[0], **options))
    expected = TURNED[orientation](BLOCKS)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("data", [b"", b"Exif\0\0", exif(6)[:-8], exif(9), exif(6)[:12] + b"\xff" * 20, exif(0)])
def test_damaged_orientation_is_none(data: bytes) -> None:
    assert np.array_equal(hwc(encoded(Image.fromarray(BLOCKS), "PNG", exif=data or None)), BLOCKS)


def test_transparency_is_blended_with_white() -> None:
    gray = np.array([[[0, 0], [0, 255], [100, 128], [255, 7]]])
    assert hwc(png(gray, color=4))[0, :, 0].tolist() == [255, 0, round((100 * 128 + 255 * 127) / 255), 255]
    color = np.array([[[9, 8, 7, 0], [9, 8, 7, 255], [0, 100, 200, 51]]])
    blended = [round((v * 51 + 255 * 204) / 255) for v in (0, 100, 200)]
    for data in (png(color, color=6), encoded(Image.fromarray(color.astype(np.uint8)), "TIFF")):
        assert hwc(data).tolist() == [[[255] * 3, [9, 8, 7], blended]]
    assert hwc(png(color * 257, color=6, bits=16)).tolist() == [[[255] * 3, [9, 8, 7], blended]]
    lossless = encoded(Image.fromarray(color.astype(np.uint8)), "WEBP", lossless=True, exact=True)
    assert hwc(lossless).tolist() == [[[255] * 3, [9, 8, 7], blended]]
    keyed = np.array([[[1, 2, 3], [1, 2, 4]]])
    data = png(keyed, color=2, extra=chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert hwc(data).tolist() == [[[255] * 3, [1, 2, 4]]]
    data = png(np.array([[[1000], [25700]]]), color=0, bits=16, extra=chunk(b"tRNS", struct.pack(">H", 1000)))
    assert hwc(data)[0, :, 0].tolist() == [255, 100]
    wide = png(keyed * 257, color=2, bits=16, extra=chunk(b"tRNS", struct.pack(">HHH", 257, 514, 771)))
    with pytest.raises(UndecodableError, match="a transparent color of 16 bits"):
        decode_image(wide)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes(kind: str) -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert hwc(encoded(image, kind)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert hwc(encoded(image, kind, transparency=1)).tolist() == [[[10, 20, 30], [255] * 3, [70, 80, 90]]]
    if kind == "PNG":
        data = encoded(image, kind, transparency=bytes([255, 51, 0]))
        blended = [round((v * 51 + 255 * 204) / 255) for v in (40, 50, 60)]
        assert hwc(data).tolist() == [[[10, 20, 30], blended, [255] * 3]]


def test_one_bit() -> None:
    bits = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "TIFF", "BMP"):
        assert hwc(encoded(bits, kind))[0, :, 1].tolist() == [255, 0, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_bit_depths_of_tiff(order: str) -> None:
    gray = np.array([[0, 128, 129, 25700, 65535]], dtype=np.uint16)
    assert hwc(tiff(gray, photometric=1, order=order))[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    color = np.array([[[257 * 3, 257 * 200, 65535]]], dtype=np.uint16)
    assert hwc(tiff(color, photometric=2, order=order)).tolist() == [[[3, 200, 255]]]
    floats = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    assert hwc(tiff(floats, photometric=1, order=order))[0, :, 0].tolist() == [0, 64, 128, 255]
    assert hwc(tiff(floats, photometric=0, order=order))[0, :, 0].tolist() == [255, 191, 127, 0]
    alpha = np.array([[[9, 8, 7, 0], [9, 8, 7, 255]]], dtype=np.uint8)
    assert hwc(tiff(alpha, photometric=2, order=order, t338=2)).tolist() == [[[255] * 3, [9, 8, 7]]]
    inverted = np.array([[0, 55, 255]], dtype=np.uint8)
    assert hwc(tiff(inverted, photometric=0, order=order))[0, :, 0].tolist() == [255, 200, 0]


def test_white_is_zero_of_sixteen_bits() -> None:
    gray = np.array([[0, 25700, 65535]], dtype=np.uint16)
    assert hwc(tiff(gray, photometric=0))[0, :, 0].tolist() == [255, 155, 0]


def test_twelve_bits_of_tiff() -> None:
    packed = np.frombuffer(bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10]), dtype=np.uint8)[None]  # 0, 2048, 4095, 16
    data = bytearray(tiff(packed, photometric=1, bits=12))
    at = data.index(struct.pack("<HHI", 256, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 4)
    assert hwc(bytes(data))[0, :, 0].tolist() == [0, 128, 255, 1]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0.0, 1.5]], dtype=np.float32), "its floats range from 0 to 1.5; expected 0 .black. to 1 .white."),
        (np.array([[0.0, np.nan]], dtype=np.float32), "its floats range from nan to nan"),
        (np.array([[0, 70000]], dtype=np.uint32), "its integers have 32 bits or a sign; expected 16 bits"),
        (np.array([[0, -5]], dtype=np.int16), "its integers have 16 bits or a sign"),
        (np.array([[0, -5]], dtype=np.int8), "its numbers have a sign"),
        (np.array([[0, 0.5]], dtype=np.float64), "a TIFF whose header is damaged or of an unknown kind"),
        (np.zeros((1, 2, 3), dtype=np.float32), "a TIFF whose header is damaged or of an unknown kind"),
    ],
)
def test_tiff_of_unknown_range_is_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(UndecodableError, match=message):
        decode_image(tiff(pixels, photometric=1 if pixels.ndim == 2 else 2))


def test_sixteen_bits_of_pgm() -> None:
    assert hwc(b"P5 3 1 65535\n" + struct.pack(">HHH", 0, 25700, 65535))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_wide_gamut_becomes_srgb(kind: str) -> None:
    """Against the matrices of both color spaces (http://www.brucelindbloom.com, D50)."""
    stored = np.array([[[200, 60, 40], [60, 180, 90], [90, 100, 200], [128, 128, 128]]], dtype=np.uint8)
    light = (stored / 255.0) ** (563 / 256)
    expected = srgb(light @ ADOBE_TO_XYZ.T @ np.linalg.inv(SRGB_TO_XYZ).T)
    assert np.abs(expected - stored).max() > 20  # a difference that matters
    options: dict[str, Any] = {"icc_profile": matrix_profile(ADOBE_TO_XYZ, 563 / 256)}
    options |= {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(stored.repeat(8, 0).repeat(8, 1))
    assert np.abs(hwc(encoded(image, kind, **options))[::8, ::8] - expected).max() <= (3 if kind == "JPEG" else 1.5)


def test_profiles_of_srgb_and_of_other_color_spaces_change_nothing() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, gray_profile(1.0)):
        assert np.array_equal(hwc(encoded(Image.fromarray(BLOCKS), "PNG", icc_profile=profile)), BLOCKS)
    with pytest.raises(UndecodableError, match="its color profile is damaged"):
        decode_image(encoded(Image.fromarray(BLOCKS), "PNG", icc_profile=own[:50]))


def test_profiles_with_palettes_and_transparency() -> None:
    profile = matrix_profile(ADOBE_TO_XYZ, 563 / 256)
    plain = hwc(png(np.array([[[200, 60, 40]]]), color=2, extra=_iccp(profile)))[0, 0].tolist()
    palette = Image.frombytes("P", (1, 1), bytes([0]))
    palette.putpalette([200, 60, 40])
    assert hwc(encoded(palette, "PNG", icc_profile=profile)).tolist() == [[plain]]
    half = hwc(png(np.array([[[200, 60, 40, 51]]]), color=6, extra=_iccp(profile)))[0, 0]
    assert half.tolist() == [round((v * 51 + 255 * 204) / 255) for v in plain]


def _iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))


def test_gray_profile() -> None:
    gray = np.array([[0, 50, 128, 255]], dtype=np.uint8)
    shown = hwc(encoded(Image.fromarray(gray), "PNG", icc_profile=gray_profile(1.0)))
    assert np.abs(shown[:, :, 1] - srgb(gray / 255)).max() <= 1


def test_gamma_and_primaries_of_png() -> None:
    pixels = np.array([[[0, 50, 128], [255, 10, 200]]])
    linear = png(pixels, color=2, extra=chunk(b"gAMA", struct.pack(">I", 100000)))
    assert np.abs(hwc(linear) - srgb(pixels / 255)).max() <= 0.5
    usual = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]
    extra = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"cHRM", struct.pack(">8I", *usual))
    assert np.array_equal(hwc(png(pixels, color=2, extra=extra)), pixels)
    usual[4] = 21000
    extra = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"cHRM", struct.pack(">8I", *usual))
    with pytest.raises(UndecodableError, match=r"its primaries .cHRM. are .* without a profile"):
        decode_image(png(pixels, color=2, extra=extra))
    with pytest.raises(UndecodableError, match=r"a PNG of the color space cICP \(9, 16, 0, 1\)"):
        decode_image(png(pixels, color=2, extra=chunk(b"cICP", bytes([9, 16, 0, 1]))))
    assert np.array_equal(hwc(png(pixels, color=2, extra=chunk(b"cICP", bytes([1, 13, 0, 1])))), pixels)


def test_cmyk() -> None:
    """Without a profile R = (1 - C) (1 - K); Adobe's JPEG are stored inverted."""
    ink = Image.new("CMYK", (16, 16), (255, 102, 0, 51))
    for data in (encoded(ink, "JPEG", quality=100), encoded(ink, "TIFF")):
        assert np.abs(hwc(data) - np.array([0.0, 153 * 0.8, 255 * 0.8])).max() <= 2
    lightness = np.array([100, 0] + [60, 0] * 7)
    profile = cmyk_profile(lightness)
    for color, L in (((0, 0, 0, 0), 100), ((255, 0, 0, 0), 60), ((0, 0, 0, 255), 0)):
        ink = Image.new("CMYK", (16, 16), color)
        expected = srgb(np.array(((L + 16) / 116) ** 3 if L > 8 else L / 903.3))
        for data in (
            encoded(ink, "JPEG", quality=100, icc_profile=profile),
            encoded(ink, "TIFF", icc_profile=profile),
        ):
            assert np.abs(hwc(data) - expected).max() <= 3, (color, hwc(data)[0, 0], expected)


def test_lab_of_tiff() -> None:
    """Primaries of sRGB in L*a*b* (D50); the rounding of L*a*b* is up to 13 levels in dark channels."""
    lab = np.array([[[54.29, 80.80, 69.89], [87.82, -79.27, 80.99], [100, 0, 0], [0, 0, 0]]])
    stored = np.concatenate([lab[..., :1] * 2.55, lab[..., 1:] % 256], -1).round().astype(np.uint8)
    expected = np.array([[[255, 0, 0], [0, 255, 0], [255] * 3, [0] * 3]])
    assert np.abs(hwc(tiff(stored, photometric=8)).astype(int) - expected).max() <= 16


def test_first_image_of_animations() -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (40, 80, 120)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert hwc(data)[3, 3].tolist() == [40, 0, 0], kind


def test_bmp_and_progressive_jpeg() -> None:
    image = Image.fromarray(BLOCKS)
    assert np.array_equal(hwc(encoded(image, "BMP")), BLOCKS)
    for options in ({"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}):
        data = encoded(image, "JPEG", quality=95, subsampling=0, **options)
        assert np.abs(hwc(data).astype(int) - BLOCKS).max() <= 6


def test_unusual_jpeg_huge_and_empty_images_are_refused_by_name() -> None:
    data = bytearray(encoded(Image.fromarray(BLOCKS), "JPEG"))
    frame = data.index(b"\xff\xc0")
    for at, value, message in (
        (frame + 4, 12, "a JPEG of 12 bits; expected 8 bits"),
        (frame + 1, 0xC3, "a JPEG of 8 bits, coded by SOF3"),
        (frame + 1, 0xC9, "a JPEG of 8 bits, coded by SOF9"),
    ):
        changed = bytearray(data)
        changed[at] = value
        with pytest.raises(UndecodableError, match=message):
            decode_image(bytes(changed))
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(UndecodableError, match=r"65535x65535 pixels are more than 2\^28"):
        decode_image(bytes(data))
    header = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(UndecodableError, match="100000x100000 pixels"):
        decode_image(bomb)
    empty = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(8) + header[8:]) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    for nothing in (empty, b"P6 0 0 255\n", b"BM" + bytes(60)):
        with pytest.raises(UndecodableError):
            decode_image(nothing)


def test_programs_are_never_run_and_other_formats_are_refused() -> None:
    """PIL would hand PostScript to an interpreter."""
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1", b""):
        for decode in (decode_image, decode_sample):
            with pytest.raises(UndecodableError, match="not an image in a format that is read .JPEG, PNG"):
                decode(data)


def test_checksums_of_png() -> None:
    """Every flipped bit is found, without a crash."""
    pixels = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    for at in range(8, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(UndecodableError):
            decode_image(bytes(changed))


def test_pil_images_follow_the_same_rules() -> None:
    """Also images of other libraries that were opened by PIL."""
    data = encoded(Image.fromarray(BLOCKS), "PNG", exif=exif(6), icc_profile=matrix_profile(ADOBE_TO_XYZ, 2.2))
    with Image.open(io.BytesIO(data)) as image:
        assert torch.equal(from_pil(image), decode_image(data))
