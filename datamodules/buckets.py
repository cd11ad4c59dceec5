"""Aspect-ratio buckets: image sizes of about one area, and a training order whose batches have one size each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules.examples import Examples
from datamodules.stream import epoch_order
from lightning_guide.data import Batch
from lightning_guide.seeds import mix

__all__ = ["AspectBuckets", "BucketVisits", "Fitted", "fit_image"]

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class AspectBuckets:
    """Sizes for images of other aspect ratios than the model's own size.

    Attributes:
        max_ratio: longest side over shortest, at most.
        step: sides are multiples of it, in pixels.
        block: number of consecutive images of one size in the training order, a multiple of the batch size; None: the
            batch size. Set it to train in the same order with smaller batches on more processes.
    """

    max_ratio: float = 2.0
    step: int = 64
    block: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_ratio < math.inf or self.step < 1:
            raise ValueError(f"buckets need max_ratio >= 1 and step >= 1; got {self.max_ratio} and {self.step}")

    def block_of(self, batch_size: int) -> int:
        """Return the number of consecutive images of one size.

        Raises:
            ValueError: if it is no multiple of the batch size.
        """
        block = batch_size if self.block is None else self.block
        if block < 1 or block % batch_size:
            raise ValueError(f"block of the buckets is {block}; expected a multiple of batch_size, {batch_size}")
        return block

    def sizes(self, size: Size) -> list[Size]:
        """Return sizes with at most the area of `size`, which is one of them, as far as multiples of `step` allow.

        Raises:
            ValueError: if a side of `size` is no multiple of `step`.

        Examples:
            >>> AspectBuckets(max_ratio=1.5).sizes((512, 512))
            [(448, 576), (512, 512), (576, 448)]
        """
        if any(side % self.step for side in size):
            raise ValueError(f"the size {size[0]}x{size[1]} is no multiple of the step of buckets, {self.step} pixels")
        area, found = size[0] * size[1], {size}
        for first in range(self.step, area // self.step + 1, self.step):
            other = area // first // self.step * self.step
            if other and max(first, other) <= self.max_ratio * min(first, other):
                found |= {(first, other), (other, first)}
        return sorted(found)


def nearest(sizes: Sequence[Size], height: int, width: int) -> Size:
    """Return the size whose aspect ratio is nearest to that of an image; of several the largest."""
    return min(
        sizes, key=lambda size: (round(abs(math.log(size[0] * width / size[1] / height)), 9), -size[0] * size[1])
    )


class Fitted(NamedTuple):
    """An image uint8 (C, H, W) of a size of the buckets.

    `sizes` are height and width of the original, top and left of the crop after scaling, and height and width (H, W),
    as SDXL is conditioned on them (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.2).
    """

    x: Tensor
    sizes: tuple[int, int, int, int, int, int]

    @property
    def enlarged(self) -> bool:
        """Whether the original has less pixels on a side."""
        return self.sizes[0] < self.sizes[4] or self.sizes[1] < self.sizes[5]


def fit_image(x: Tensor, sizes: Sequence[Size]) -> Fitted:
    """Crop the center of an image uint8 (C, H, W) to the nearest of the aspect ratios, and scale it (bicubic)."""
    height, width = x.shape[1:]
    H, W = nearest(sizes, height, width)
    scale = max(H / height, W / width)
    h, w = min(height, max(1, round(H / scale))), min(width, max(1, round(W / scale)))
    top, left = (height - h) // 2, (width - w) // 2
    crop = x[:, top : top + h, left : left + w]
    if (h, w) != (H, W):
        crop = F.interpolate(crop[None], (H, W), mode="bicubic", antialias=True, align_corners=False)[0]
    return Fitted(crop.contiguous(), (height, width, round(top * scale), round(left * scale), H, W))


class BucketVisits(Dataset[Batch]):
    """Endless training stream whose blocks of `block` positions hold elements of one bucket.

    Each bucket is an endless stream of its own passes. Of n consecutive blocks, as many are of a bucket as it has
    elements, in random order: so each element is visited `block` times in `block` n positions, whatever the sizes of
    buckets. The element at a position is a function of (seed, block, position).
    """

    def __init__(self, examples: Examples, buckets: Tensor, *, block: int, seed: int) -> None:
        """Stream `examples`, whose buckets are numbered in `buckets` (n,)."""
        self.examples, self.block, self.seed = examples, block, seed
        self.buckets = buckets
        self.members = {int(each): (buckets == each).nonzero()[:, 0] for each in buckets.unique()}

    def __getitem__(self, positions: range) -> Batch:
        return self.examples.take(self.elements(positions))

    def elements(self, positions: range) -> Tensor:
        """Return the elements at `positions`, which lie in one block."""
        block, count = positions.start // self.block, len(self.buckets)
        assert positions.step == 1 and positions.stop <= (block + 1) * self.block, "positions of two blocks"
        visit, place = divmod(block, count)
        kinds = self.buckets[epoch_order(self.seed, visit, count)]
        bucket = int(kinds[place])
        members = self.members[bucket]
        before = visit * len(members) + int((kinds[:place] == bucket).sum())
        first = before * self.block + positions.start % self.block
        seed = mix(self.seed, "bucket", bucket)
        at = torch.arange(first, first + len(positions))
        visits = torch.div(at, len(members), rounding_mode="floor")
        orders = {int(each): epoch_order(seed, int(each), len(members)) for each in visits.unique()}
        chosen = [orders[v][i % len(members)] for v, i in zip(visits.tolist(), at.tolist(), strict=True)]
        return members[torch.stack(chosen)]
