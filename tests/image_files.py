"""Encoded images built byte by byte, as independent truth for decoders."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image as file content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = ">") -> bytes:
    """A block of EXIF data that holds the orientation alone."""
    mark = b"MM\0*" if order == ">" else b"II*\0"
    entry = struct.pack(f"{order}HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + mark + struct.pack(f"{order}I", 8) + entry + struct.pack(f"{order}I", 0)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, *, color: int, bits: int = 8, extra: bytes = b"") -> bytes:
    """PNG of `pixels` (H, W, C) in color type 0 (gray), 2 (RGB), 4 (gray, alpha) or 6 (RGBA), `extra` before IDAT."""
    rows = pixels.astype(">u2" if bits == 16 else "u1")
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, *, photometric: int, order: str = "<", bits: int | None = None, **tags: int) -> bytes:
    """Uncompressed TIFF of one strip of `pixels` (H, W) or (H, W, C); `tags` as t338=2, one number each."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    wide = bits or pixels.dtype.itemsize * 8
    values: dict[int, tuple[int, ...]] = {
        256: (pixels.shape[1],), 257: (pixels.shape[0],), 258: (wide,) * channels, 259: (1,), 262: (photometric,),
        273: (8,), 277: (channels,), 278: (pixels.shape[0],), 279: (len(data),), 284: (1,), 339: (kind,) * channels,
    }  # fmt: skip
    values |= {int(name[1:]): (value,) for name, value in tags.items()}
    start = 8 + len(data) + len(data) % 2
    far = start + 2 + 12 * len(values) + 4
    entries, beyond = b"", b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            beyond, packed = beyond + packed, struct.pack(f"{order}I", far + len(beyond))
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    directory = struct.pack(f"{order}H", len(values)) + entries + struct.pack(f"{order}I", 0)
    mark = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return mark + data + b"\0" * (len(data) % 2) + directory + beyond


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + _fixed(0.9642, 1, 0.8249),
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = bytearray(128)
    struct.pack_into(">I", head, 0, start + len(body))
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\x02\x40\0\0", b"mntr", space, connection
    head[36:40], head[68:80] = b"acsp", _fixed(0.9642, 1, 0.8249)
    if space == b"CMYK":
        head[12:16] = b"prtr"
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def matrix_profile(to_xyz: np.ndarray, gamma: float) -> bytes:
    """ICC profile of RGB with XYZ (D50) = to_xyz @ rgb^gamma."""
    tags = {f"{c}XYZ".encode(): b"XYZ " + bytes(4) + _fixed(*to_xyz[:, i]) for i, c in enumerate("rgb")}
    return _profile(b"RGB ", b"XYZ ", tags | {f"{c}TRC".encode(): _curve(gamma) for c in "rgb"})


def gray_profile(gamma: float) -> bytes:
    """ICC profile of gray with Y = v^gamma."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile(lightness: np.ndarray) -> bytes:
    """ICC profile of CMYK whose color is gray: L* (0 to 100) at the 16 corners, index 8 C + 4 M + 2 Y + K."""
    linear = bytes(range(256))
    table = b"".join(bytes([round(v * 2.55), 128, 128]) for v in lightness)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + linear * 4 + table + linear * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": lut})
