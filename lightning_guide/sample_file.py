"""One sample as the bytes of a file: a picture as PNG, anything else as npy."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["encode_png", "encode_sample"]


def encode_png(picture: Tensor) -> bytes:
    """The PNG file of a `picture` (1 or 3, H, W), uint8.

    Raises:
        ValueError: if it is no such picture.
    """
    if not _is_picture(picture):
        raise ValueError(
            f"a PNG file holds a picture of shape (1 or 3, H, W) and type torch.uint8, got {tuple(picture.shape)} "
            f"and {picture.dtype}"
        )
    pixels = picture.permute(1, 2, 0).contiguous().cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def encode_sample(x: Tensor) -> tuple[str, bytes]:
    """Extension and content of the file of one sample `x` (*data_shape): uint8 as it is, all else as float32."""
    if _is_picture(x):
        return "png", encode_png(x)
    file = io.BytesIO()
    np.save(file, (x if x.dtype == torch.uint8 else x.float()).contiguous().cpu().numpy())
    return "npy", file.getvalue()


def _is_picture(x: Tensor) -> bool:
    return x.dtype == torch.uint8 and x.ndim == 3 and x.shape[0] in (1, 3)
