"""Differentiable random augmentations of images in [-1, 1], drawn for each copy of each sample.

The policy of Shen et al. 2024, https://arxiv.org/abs/2403.12404, is color, translation, resize and cutout, in the
terms of DiffAugment (Zhao et al. 2020, https://arxiv.org/abs/2006.10738). The published code first resizes to the input
size of the guide: `Resized`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["AddedNoise", "Augmentation", "ColorJitter", "Cutout", "Rescaled", "Resized", "Transform", "Translation"]


Transform = Callable[[Tensor], Tensor]
"""Images (n, B, C, H, W) -> images (n, B, C, H', W')."""


class Augmentation(HasRecipe, ABC):
    """Base of the augmentations."""

    @abstractmethod
    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Draw one transform for each of the `copies` of each sample."""


def _uniform(seeds: SampleSeeds, purpose: str, copies: int, count: int, device: torch.device) -> Tensor:
    """Return `count` uniform draws for each copy of each sample, (count, n, B, 1, 1, 1)."""
    drawn = seeds.uniform(f"energy {purpose}", (copies, count), device)  # (B, n, count)
    return drawn.permute(2, 1, 0)[..., None, None, None]


class ColorJitter(Augmentation):
    """Random brightness, saturation and contrast.

    Brightness: x + U(-1/2, 1/2). Saturation: the difference to the mean over the channels of a pixel, times U(0, 2).
    Contrast: the difference to the mean of the image, times U(1/2, 3/2).
    """

    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Draw three numbers for each copy."""
        brightness, saturation, contrast = _uniform(seeds, "color", copies, 3, device)

        def transform(x: Tensor) -> Tensor:
            x = x + (brightness - 0.5).to(x)
            gray = x.mean(-3, keepdim=True)
            x = gray + (x - gray) * (2 * saturation).to(x)
            mean = x.mean((-3, -2, -1), keepdim=True)
            return mean + (x - mean) * (contrast + 0.5).to(x)

        return transform


class Translation(Augmentation):
    """Random shifts by whole pixels, up to `share` of the side along each axis, padded with zeros."""

    def __init__(self, share: float = 0.125) -> None:
        """Shift by up to `share` of the side, at least one pixel.

        Raises:
            ValueError: unless 0 < `share` <= 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"Translation needs a share of the side in (0, 1], got {share}")
        self.share = share

    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Draw two shifts for each copy."""
        rows, columns = _uniform(seeds, "translation", copies, 2, device)
        return lambda x: self._shift(self._shift(x, rows, -2), columns, -1)

    def _shift(self, x: Tensor, u: Tensor, axis: int) -> Tensor:
        side = x.shape[axis]
        largest = max(1, round(self.share * side))
        shift = (u * (2 * largest + 1)).floor().long() - largest  # (n, B, 1, 1, 1)
        shape = [side if i == 5 + axis else 1 for i in range(5)]
        source = torch.arange(side, device=x.device).reshape(shape) - shift
        inside = (source >= 0) & (source < side)
        return x.gather(axis, source.clamp(0, side - 1).expand_as(x)) * inside


class Rescaled(Augmentation):
    """Random bilinear rescaling by U(1 - amount, 1 + amount) about the center, cropped or padded with zeros."""

    def __init__(self, amount: float = 0.2) -> None:
        """Rescale by up to `amount`.

        Raises:
            ValueError: unless 0 < `amount` < 1.
        """
        if not 0 < amount < 1:
            raise ValueError(f"Rescaled needs an amount in (0, 1), got {amount}")
        self.amount = amount

    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Draw one factor for each copy (in the paper one for the whole batch)."""
        u = _uniform(seeds, "rescaled", copies, 1, device)[0]

        def transform(x: Tensor) -> Tensor:
            factor = (1 + self.amount * (2 * u - 1)).to(x).flatten()
            theta = x.new_zeros(len(factor), 2, 3)
            theta[:, 0, 0] = theta[:, 1, 1] = 1 / factor
            flat = x.flatten(0, 1)
            grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
            return F.grid_sample(flat, grid, align_corners=False).unflatten(0, x.shape[:2])

        return transform


class Cutout(Augmentation):
    """A square of `share` times the side set to zero, centered on a random pixel."""

    def __init__(self, share: float = 0.5) -> None:
        """Cut out a square of `share` of the side.

        Raises:
            ValueError: unless 0 < `share` < 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"Cutout needs a share of the side in (0, 1), got {share}")
        self.share = share

    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Draw one center for each copy."""
        row, column = _uniform(seeds, "cutout", copies, 2, device)

        def transform(x: Tensor) -> Tensor:
            covered = []
            for axis, u in ((-2, row), (-1, column)):
                side = x.shape[axis]
                size = round(self.share * side)
                first = (u * side).floor() - size // 2
                pixel = torch.arange(side, device=x.device).reshape([side if i == 5 + axis else 1 for i in range(5)])
                covered.append((pixel >= first) & (pixel < first + size))
            return x * ~(covered[0] & covered[1])

        return transform


class AddedNoise(Augmentation):
    """x + std n with standard normal n."""

    def __init__(self, std: float) -> None:
        """Add noise of standard deviation `std`.

        Raises:
            ValueError: if `std` is negative or not finite.
        """
        if not 0 <= std < math.inf:
            raise ValueError(f"AddedNoise needs a finite std >= 0, got {std}")
        self.std = std

    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Draw noise for each element of each copy, once the first call gives the shape."""
        drawn: list[Tensor] = []

        def transform(x: Tensor) -> Tensor:
            if not drawn:
                drawn.append(seeds.normal("energy noise", (copies, *x.shape[2:]), device).transpose(0, 1).to(x))
            return x + self.std * drawn[0]

        return transform


class Resized(Augmentation):
    """Bicubic resizing to `size` x `size` pixels, the input size of the guide, before the random augmentations."""

    def __init__(self, size: int) -> None:
        """Resize to `size` pixels a side.

        Raises:
            ValueError: if `size` is less than 1.
        """
        if size < 1:
            raise ValueError(f"Resized needs size >= 1, got {size}")
        self.size = size

    def draw(self, seeds: SampleSeeds, copies: int, device: torch.device) -> Transform:
        """Return the resizing, without a draw."""

        def transform(x: Tensor) -> Tensor:
            size = (self.size, self.size)
            resized = F.interpolate(x.flatten(0, 1), size, mode="bicubic", align_corners=False, antialias=True)
            return resized.unflatten(0, x.shape[:2])

        return transform
