"""Linear inverse problems y = A x + noise: measurement operators A, and the energy of a measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Trajectory
from lightning_guide.objectives.energy import Energy, Loss
from lightning_guide.objectives.reference import references_for
from lightning_guide.seeds import mix
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.images import gaussian_blur
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Blurred", "Boxed", "Compressed", "Downsampled", "Masked", "Measurement", "Operator"]


class Operator(HasRecipe, ABC):
    """Base of linear measurement operators A."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, *) of images `x` (B, C, H, W), linear and equal for all samples."""


class Downsampled(Operator):
    """Super-resolution: means of squares of `factor` x `factor` pixels."""

    def __init__(self, factor: int = 4) -> None:
        """Choose the `factor`, which divides the sides.

        Raises:
            ValueError: if `factor` is less than 1.
        """
        if factor < 1:
            raise ValueError(f"Downsampled needs factor >= 1, got {factor}")
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H / factor, W / factor).

        Raises:
            ValueError: if `factor` does not divide the sides.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"images of {x.shape[-2]}x{x.shape[-1]} cannot be averaged in squares of {self.factor}")
        return F.avg_pool2d(x, self.factor)


class Blurred(Operator):
    """Deblurring: convolution with a Gaussian of standard deviation `std` pixels, with replicated borders."""

    def __init__(self, std: float = 1.0) -> None:
        """Choose `std` in pixels; the kernel has radius 3 `std`.

        Raises:
            ValueError: unless `std` is positive.
        """
        if not std > 0:
            raise ValueError(f"Blurred needs std > 0, got {std}")
        self.std = std

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H, W)."""
        return gaussian_blur(x, sigma=self.std, radius=max(1, round(3 * self.std)), border="replicate")


class Masked(Operator):
    """Random inpainting: each pixel is kept with probability `share`, the same pixels for all samples."""

    def __init__(self, share: float = 0.3, *, seed: int = 0) -> None:
        """Choose the `share` of pixels to keep and the `seed` of the mask.

        Raises:
            ValueError: unless 0 < `share` <= 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"Masked keeps a share in (0, 1] of the pixels, got {share}")
        self.share, self.seed = share, seed

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H, W), zero at masked pixels."""
        generator = torch.Generator().manual_seed(mix(self.seed, "mask"))
        kept = torch.rand(x.shape[-2:], generator=generator) < self.share
        return x * to_device(kept.to(x.dtype), x.device)


class Boxed(Operator):
    """Box inpainting: the rectangle [top, top + height) x [left, left + width) is masked."""

    def __init__(self, top: int, left: int, height: int, width: int) -> None:
        """Choose the rectangle, in pixels.

        Raises:
            ValueError: if it starts outside of the image, or is empty.
        """
        if min(top, left) < 0 or min(height, width) < 1:
            raise ValueError(f"Boxed needs top, left >= 0 and height, width >= 1, got {(top, left, height, width)}")
        self.top, self.left, self.height, self.width = top, left, height, width

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x (B, C, H, W), zero inside the rectangle."""
        kept = x.new_ones(x.shape[-2:])
        kept[self.top : self.top + self.height, self.left : self.left + self.width] = 0
        return x * kept


class Compressed(Operator):
    """Compressive sensing: `count` random projections P x with P normal of variance 1 / count."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        """Choose the number of measurements, `count`, and the `seed` of P.

        Raises:
            ValueError: if `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"Compressed needs count >= 1, got {count}")
        self.count, self.seed = count, seed

    def __call__(self, x: Tensor) -> Tensor:
        """Return P x (B, count)."""
        flat = x.flatten(1)
        generator = torch.Generator().manual_seed(mix(self.seed, "projections"))
        projections = torch.randn(self.count, flat.shape[1], generator=generator) / self.count**0.5
        return flat @ to_device(projections.to(x.dtype), x.device).T


class Measurement(Energy):
    """Measurement energy |y_i - A x|, not squared, with y_i = A t_i + noise n for the hidden example t_i of sample i.

    Example i is taken modulo the number of examples. The noise n of sample i depends only on (seed, i). With `squared`
    the loss is |y_i - A x|^2 / (2 noise^2), the negative log-likelihood.
    """

    def __init__(
        self,
        operator: Operator,
        truth: str | Sequence[float] | Tensor,
        *,
        noise: float = 0.05,
        squared: bool = False,
    ) -> None:
        """Choose the measurement.

        Args:
            operator: A.
            truth: hidden clean examples t (N, *), or a .npy file of them.
            noise: standard deviation of n.
            squared: use the negative log-likelihood.

        Raises:
            ValueError: if `noise` is negative, or zero with `squared`.
        """
        super().__init__()
        if noise < 0 or (squared and noise == 0):
            raise ValueError(f"Measurement needs noise >= 0, and > 0 for a squared loss, got {noise}")
        self.operator, self.truth, self.noise, self.squared = operator, truth, noise, squared

    def observe(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Return the hidden examples t (B, *) of the samples of `trajectory`, and their measurements y (B, ...)."""
        hidden = references_for(self.truth, trajectory)
        exact = self.operator(hidden)
        n = trajectory.seeds.normal("measurement", exact.shape[1:], exact.device).to(exact)
        return hidden, exact + self.noise * n

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss for the measurements of the samples of `trajectory`."""
        y = self.observe(trajectory)[1]
        return lambda x, condition, number: self._loss(x, y[number])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Raise, since the measurements depend on the sample indices of a trajectory.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Measurement needs a trajectory with the indices of the hidden examples; call start(trajectory)"
        )

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        residual = (y - self.operator(x)).flatten(1)
        return residual.square().sum(1) / (2 * self.noise**2) if self.squared else residual.norm(dim=1)
