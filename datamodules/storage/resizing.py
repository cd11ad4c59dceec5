"""Named conventions of resizing images for metrics; numbers of different conventions are not comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.storage.image_codec import shrink

__all__ = ["Convention", "Resizing"]

Convention = Literal["clean-fid", "torch-fidelity", "area"]


@dataclass(frozen=True)
class Resizing:
    """Resizing of an image uint8 (C, H, W) to (C, size, size).

    - clean-fid: PIL's antialiased bicubic filter on each channel in float32, clipped to 0..255 (Parmar et al. 2022,
      https://arxiv.org/abs/2104.11222).
    - torch-fidelity: bilinear without antialiasing or half pixels, pixel i at i H / size, as TensorFlow 1, which
      published FIDs were computed with.
    - area: the central square, averaged over areas, as `lightning-guide convert` and data modules with a `size` do.

    Attributes:
        size: side in pixels; None keeps the images.
        convention: one of the above.
        rounded: round to uint8, as in a file; False keeps float32 from 0 to 255, which clean-fid feeds its network.
    """

    size: int | None = None
    convention: Convention = "clean-fid"
    rounded: bool = True

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            ValueError: if it is below 1.
        """
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1 pixel, or none to keep the images' size")

    def __str__(self) -> str:
        if self.size is None:
            return "not resized"
        end = "" if self.rounded or self.convention == "area" else ", not rounded"
        return f"{self.convention} to {self.size}x{self.size}{end}"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the resized image; data other than images are kept.

        Raises:
            ValueError: if the convention area would enlarge it.
        """
        if self.size is None or image.dtype != torch.uint8 or image.ndim != 3:
            return image
        if self.convention == "area":
            return shrink(image, self.size)
        resize = _pil_bicubic if self.convention == "clean-fid" else _tensorflow_bilinear
        resized = resize(image.to(torch.float32), self.size)
        return resized.round().to(torch.uint8) if self.rounded else resized


def _pil_bicubic(image: Tensor, size: int) -> Tensor:
    channels = [Image.fromarray(each.numpy()) for each in image]  # of mode F
    resized = [np.array(each.resize((size, size), Image.Resampling.BICUBIC)) for each in channels]
    return torch.from_numpy(np.stack(resized)).clip(0, 255)


def _tensorflow_bilinear(image: Tensor, size: int) -> Tensor:
    for axis in (1, 2):
        old = image.shape[axis]
        at = torch.arange(size, dtype=torch.float32) * (old / size)
        low = at.floor().long().clip(max=old - 1)
        share = (at - low)[:, None] if axis == 1 else at - low
        below, above = image.index_select(axis, low), image.index_select(axis, (low + 1).clip(max=old - 1))
        image = below + (above - below) * share
    return image
