"""Seeded damage to the bytes of a file."""

from __future__ import annotations

import random

__all__ = ["mutate"]


def mutate(data: bytes, seed: str) -> tuple[str, bytes]:
    """Return the kind of damage and the damaged bytes, which differ from `data`; a function of the seed."""
    draw = random.Random(seed)
    while True:
        kind = draw.choice(list(_KINDS))
        damaged = _KINDS[kind](bytearray(data), draw)
        if damaged != data:
            return kind, bytes(damaged)


def _flip(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def _truncate(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def _insert(data: bytearray, draw: random.Random) -> bytearray:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.choice((1, 4, 64, 512))) + data[at:]


def _swap(data: bytearray, draw: random.Random) -> bytearray:
    size = draw.choice((1, 4, 16, 512))
    a, b = (draw.randrange(max(len(data) - size, 1)) for _ in range(2))
    if abs(a - b) >= size:
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def _overwrite(data: bytearray, draw: random.Random) -> bytearray:
    at, size = draw.randrange(len(data)), draw.choice((1, 2, 4, 8))
    data[at : at + size] = draw.choice((b"\0", b"\xff", b"\x7f", b"-", b"9")) * min(size, len(data) - at)
    return data


_KINDS = {"flip": _flip, "truncate": _truncate, "insert": _insert, "swap": _swap, "overwrite": _overwrite}
