"""Headers of encoded images: checksums of PNG, frames of JPEG, the orientation of EXIF."""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

__all__ = ["JpegFrame", "check_png", "exif_orientation", "jpeg_frame"]


class JpegFrame(NamedTuple):
    """Frame of a JPEG: bits and number of channels, size in pixels; `plain` without EXIF and color profile."""

    bits: int
    channels: int
    height: int
    width: int
    plain: bool


_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers SOF0 to SOF15
_SEQUENTIAL_OR_PROGRESSIVE = {0xC0, 0xC1, 0xC2}


def jpeg_frame(data: bytes) -> JpegFrame:
    """Return the frame of a JPEG file.

    Raises:
        ValueError: if there is none, or its coding or number of bits is not that of usual JPEG files.
    """
    at, plain = 2, True
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without content
            at += 2
            continue
        content = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        if marker in _FRAMES:
            if len(content) < 6:
                break
            bits, height, width, channels = struct.unpack(">BHHB", content[:6])
            if marker not in _SEQUENTIAL_OR_PROGRESSIVE or bits != 8:
                coding = "" if marker in _SEQUENTIAL_OR_PROGRESSIVE else f", coded by SOF{marker - 0xC0}"
                raise ValueError(f"a JPEG of {bits} bits{coding}; expected 8 bits, sequential or progressive")
            return JpegFrame(bits, channels, height, width, plain)
        if marker == 0xDA:
            break
        plain = plain and not content.startswith((b"Exif\0", b"ICC_PROFILE\0"))
        at += 4 + len(content)
    raise ValueError("a JPEG without a frame header; it is truncated or damaged")


def check_png(data: bytes) -> None:
    """Check all chunks of a PNG file against their checksums.

    Raises:
        ValueError: if one differs, the file is truncated, or its colors are coded as high dynamic range (cICP).
    """
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError(f"a truncated PNG: no chunk at byte {at} of {len(data)}")
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"a truncated PNG: the chunk {kind!r} ends at byte {end + 4} of {len(data)}")
        content = memoryview(data)[at + 4 : end]
        if zlib.crc32(content) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"a damaged PNG: the checksum of the chunk {kind!r} at byte {at} differs")
        if kind == b"cICP" and (length < 2 or data[at + 8] != 1 or data[at + 9] not in (1, 6, 13, 14, 15)):
            code = tuple(data[at + 8 : end])
            raise ValueError(f"a PNG of the color space cICP {code}; expected sRGB, or an ICC profile")
        at = end + 4


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, of a block of EXIF data; 1 if it has none or is damaged, as viewers do.

    Examples:
        >>> exif_orientation(b"Exif\\0\\0MM\\0*\\0\\0\\0\\x08\\0\\1\\1\\x12\\0\\3\\0\\0\\0\\1\\0\\6\\0\\0")
        6
    """
    tiff = re.sub(rb"\A(Exif\0\0)+", b"", exif)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    if at + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _ = struct.unpack_from(f"{order}HHI", tiff, entry)
        if tag == 0x0112:
            value = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, entry + 8)[0]
            return int(value) if 1 <= value <= 8 else 1
    return 1
