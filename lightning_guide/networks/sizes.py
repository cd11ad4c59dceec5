"""Sizes of pictures that a U-Net can halve at every level."""

from __future__ import annotations

__all__ = ["check_size"]


def check_size(network: str, height: int, width: int, *, stride: int) -> None:
    """Refuses a size that is no positive multiple of the total `stride`.

    Raises:
        ValueError: naming the `network` and the size.
    """
    if height % stride or width % stride or not (height and width):
        raise ValueError(
            f"{network}: the size {height}x{width} cannot be halved at every level; "
            f"height and width must be multiples of {stride}"
        )
