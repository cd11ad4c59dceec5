"""Linear measurement operators A, with their singular value decompositions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.objectives.spectrum import Spectrum
from lightning_guide.seeds import check_seed, mix
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.images import gaussian_blur
from lightning_guide.utils.recipe import HasRecipe
from lightning_guide.utils.scalars import check_whole

__all__ = ["Blurred", "Boxed", "Compressed", "Downsampled", "Masked", "Matrix", "Operator"]

_MOST_NUMBERS = 4096
"""Numbers in an x whose operator is decomposed as a matrix."""


class Operator(HasRecipe, ABC):
    """Base of linear measurement operators A."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, *) of images `x` (B, C, H, W), linear and equal for all samples."""

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        """Return the singular value decomposition for x of `shape`, float64 on the CPU: that of the whole matrix.

        Raises:
            ValueError: if x has more than 4096 numbers; an operator with structure defines its own `spectrum`.
        """
        size = math.prod(shape)
        if size > _MOST_NUMBERS:
            raise ValueError(
                f"{type(self).__name__} is decomposed as a matrix for x of up to {_MOST_NUMBERS} numbers, got {shape}; "
                "a larger one needs a `spectrum` of its own"
            )
        columns = self(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1)
        return Spectrum.of_matrix(columns.T, shape)


class ImageOperator(Operator):
    """Base of operators that treat the channels of images alike."""

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        """Return the decomposition for images of `shape` (C, H, W).

        Raises:
            ValueError: if x is no image.
        """
        if len(shape) != 3:
            raise ValueError(f"{type(self).__name__} measures images (C, H, W), got x of shape {shape}")
        return self.image_spectrum(shape)

    @abstractmethod
    def image_spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        """Return the decomposition for images of `shape` (C, H, W)."""


class Averaging(ImageOperator):
    """Base of operators that average along rows and along columns, with weights of sum 1."""

    least: int = 1
    """Smallest side of an image."""

    def image_spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        """Return the decomposition by those of both sides."""
        self(torch.zeros(1, 1, *shape[1:]))  # refuses sides that do not fit, by their names
        rows, columns = (self._side(size) for size in shape[1:])
        return Spectrum.of_sides(rows, columns, shape)

    def _side(self, size: int) -> Tensor:
        bars = torch.eye(size, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, self.least)
        return self(bars)[:, 0, :, 0].T


class Selection(ImageOperator):
    """Base of operators that keep some pixels."""

    def image_spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        """Return the mask."""
        return Spectrum.of_diagonal(self(torch.ones(1, *shape, dtype=torch.float64))[0], shape)


class Downsampled(Averaging):
    """Super-resolution: means of squares of `factor` x `factor` pixels."""

    def __init__(self, factor: int = 4) -> None:
        """Choose the `factor`, which divides the sides.

        Raises:
            ValueError: if `factor` is less than 1.
        """
        self.factor = self.least = check_whole(factor, "factor of Downsampled", least=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H / factor, W / factor).

        Raises:
            ValueError: if `factor` does not divide the sides.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"images of {x.shape[-2]}x{x.shape[-1]} cannot be averaged in squares of {self.factor}")
        return F.avg_pool2d(x, self.factor)


class Blurred(Averaging):
    """Deblurring: convolution with a Gaussian of standard deviation `std` pixels, with replicated borders."""

    def __init__(self, std: float = 1.0) -> None:
        """Choose `std` in pixels; the kernel has radius 3 `std`.

        Raises:
            ValueError: unless `std` is positive.
        """
        if not 0 < std < math.inf:
            raise ValueError(f"Blurred needs a finite std > 0, got {std}")
        self.std = std

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H, W)."""
        return gaussian_blur(x, sigma=self.std, radius=max(1, round(3 * self.std)), border="replicate")


class Masked(Selection):
    """Random inpainting: each pixel is kept with probability `share`, the same pixels for all samples."""

    def __init__(self, share: float = 0.3, *, seed: int = 0) -> None:
        """Choose the `share` of pixels to keep and the `seed` of the mask.

        Raises:
            ValueError: unless 0 < `share` <= 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"Masked keeps a share in (0, 1] of the pixels, got {share}")
        self.share, self.seed = share, check_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H, W), zero at masked pixels."""
        generator = torch.Generator().manual_seed(mix(self.seed, "mask"))
        kept = torch.rand(x.shape[-2:], generator=generator) < self.share
        return x * to_device(kept.to(x.dtype), x.device)


class Boxed(Selection):
    """Box inpainting: the rectangle [top, top + height) x [left, left + width) is masked."""

    def __init__(self, top: int, left: int, height: int, width: int) -> None:
        """Choose the rectangle, in pixels.

        Raises:
            ValueError: if it starts outside of the image, or is empty.
        """
        self.top, self.left = (check_whole(each, "top or left of Boxed", least=0) for each in (top, left))
        self.height, self.width = (check_whole(each, "height or width of Boxed", least=1) for each in (height, width))

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H, W), zero inside the rectangle."""
        kept = x.new_ones(x.shape[-2:])
        kept[self.top : self.top + self.height, self.left : self.left + self.width] = 0
        return x * kept


class Matrix(Operator):
    """Products M x with a matrix M, of x (B, *) as rows of numbers."""

    def __init__(self, matrix: Sequence[Sequence[float]] | Tensor) -> None:
        """Choose the `matrix` M (m, d).

        Raises:
            ValueError: if it is no matrix.
        """
        self.matrix = torch.as_tensor(matrix)
        if self.matrix.ndim != 2 or not self.matrix.numel():
            raise ValueError(f"Matrix needs a matrix (m, d), got the shape {tuple(self.matrix.shape)}")
        if not bool(self.matrix.isfinite().all()):
            raise ValueError("Matrix needs finite numbers")

    def __call__(self, x: Tensor) -> Tensor:
        """Return M x (B, m).

        Raises:
            ValueError: if x has another number of elements than M has columns.
        """
        if x[0].numel() != self.matrix.shape[1]:
            raise ValueError(f"Matrix has {self.matrix.shape[1]} columns for x of shape {tuple(x.shape[1:])}")
        return x.flatten(1) @ to_device(self.matrix.to(x.dtype), x.device).T


class Compressed(Operator):
    """Compressive sensing: `count` random projections P x with P normal of variance 1 / count."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        """Choose the number of measurements, `count`, and the `seed` of P.

        Raises:
            ValueError: if `count` is below 1.
        """
        self.count, self.seed = check_whole(count, "count of Compressed", least=1), check_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Return P x (B, count)."""
        flat = x.flatten(1)
        generator = torch.Generator().manual_seed(mix(self.seed, "projections"))
        projections = torch.randn(self.count, flat.shape[1], generator=generator) / self.count**0.5
        return flat @ to_device(projections.to(x.dtype), x.device).T
