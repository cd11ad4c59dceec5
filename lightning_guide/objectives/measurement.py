"""Linear measurements of pictures, the A of an inverse problem y = A x + noise.

Inverse problems: samples that agree with a noisy linear measurement of a hidden picture.
"""

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
from lightning_guide.utils.images import gaussian_blur
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Blurred", "Boxed", "Compressed", "Downsampled", "Masked", "Measurement", "Operator"]


class Operator(HasRecipe, ABC):
    """Base of the measurements."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x (B, *) of pictures `x` (B, C, H, W), linear and the same for every sample."""


class Downsampled(Operator):
    """The means of squares of `factor` x `factor` pixels: super-resolution."""

    def __init__(self, factor: int = 4) -> None:
        """`factor` divides the sides.

        Raises:
            ValueError: if `factor` is less than 1.
        """
        if factor < 1:
            raise ValueError(f"Downsampled needs factor >= 1, got {factor}")
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H / factor, W / factor).

        Raises:
            ValueError: if `factor` does not divide the sides.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"pictures of {x.shape[-2]}x{x.shape[-1]} cannot be averaged in squares of {self.factor}")
        return F.avg_pool2d(x, self.factor)


class Blurred(Operator):
    """Convolution with a Gaussian of standard deviation `std` pixels, the border pixels repeated: deblurring."""

    def __init__(self, std: float = 1.0) -> None:
        """`std` in pixels; the kernel reaches out to 3 of them.

        Raises:
            ValueError: unless `std` is positive.
        """
        if not std > 0:
            raise ValueError(f"Blurred needs std > 0, got {std}")
        self.std = std

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W)."""
        return gaussian_blur(x, sigma=self.std, radius=max(1, round(3 * self.std)), border="replicate")


class Masked(Operator):
    """Each pixel is kept with probability `share`, the same ones for all samples: inpainting at random pixels."""

    def __init__(self, share: float = 0.3, *, seed: int = 0) -> None:
        """`share` of pixels that are kept; `seed` chooses them.

        Raises:
            ValueError: unless 0 < `share` <= 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"Masked keeps a share in (0, 1] of the pixels, got {share}")
        self.share, self.seed = share, seed

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W), zero where nothing is known."""
        generator = torch.Generator().manual_seed(mix(self.seed, "mask"))
        kept = torch.rand(x.shape[-2:], generator=generator) < self.share
        return x * kept.to(x)


class Boxed(Operator):
    """A rectangle is missing, [top, top + height) x [left, left + width): inpainting."""

    def __init__(self, top: int, left: int, height: int, width: int) -> None:
        """The rectangle, in pixels.

        Raises:
            ValueError: if it begins outside of the picture, or holds no pixel.
        """
        if min(top, left) < 0 or min(height, width) < 1:
            raise ValueError(f"Boxed needs top, left >= 0 and height, width >= 1, got {(top, left, height, width)}")
        self.top, self.left, self.height, self.width = top, left, height, width

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W), zero inside the rectangle."""
        kept = x.new_ones(x.shape[-2:])
        kept[self.top : self.top + self.height, self.left : self.left + self.width] = 0
        return x * kept


class Compressed(Operator):
    """`count` random projections P x with P normal of variance 1 / count: compressive sensing."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        """`count` of measurements; `seed` draws P.

        Raises:
            ValueError: if there is none.
        """
        if count < 1:
            raise ValueError(f"Compressed needs count >= 1, got {count}")
        self.count, self.seed = count, seed

    def __call__(self, x: Tensor) -> Tensor:
        """(B, count)."""
        flat = x.flatten(1)
        generator = torch.Generator().manual_seed(mix(self.seed, "projections"))
        projections = torch.randn(self.count, flat.shape[1], generator=generator) / self.count**0.5
        return flat @ projections.to(x).T


class Measurement(Energy):
    """|y_i - A x|, not squared, with y_i = A t_i + noise n: sample i hides the example t_i, i modulo their number.

    The noise n of sample i depends on (seed, i) alone, as everything about it. With `squared` the loss is
    |y_i - A x|^2 / (2 noise^2), the negative log-likelihood.
    """

    def __init__(
        self,
        operator: Operator,
        truth: str | Sequence[float] | Tensor,
        *,
        noise: float = 0.05,
        squared: bool = False,
    ) -> None:
        """`truth`: hidden clean examples (N, *) or a .npy file of them; `noise`: standard deviation of n.

        Raises:
            ValueError: if `noise` is negative, or zero where it divides.
        """
        super().__init__()
        if noise < 0 or (squared and noise == 0):
            raise ValueError(f"Measurement needs noise >= 0, and > 0 for a squared loss, got {noise}")
        self.operator, self.truth, self.noise, self.squared = operator, truth, noise, squared

    def observe(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """The hidden examples t (B, *) of the samples of `trajectory`, and their measurements y (B, ...)."""
        hidden = references_for(self.truth, trajectory)
        exact = self.operator(hidden)
        n = trajectory.seeds.normal("measurement", exact.shape[1:], exact.device).to(exact)
        return hidden, exact + self.noise * n

    def start(self, trajectory: Trajectory) -> Loss:
        """The loss against the measurements of these samples."""
        y = self.observe(trajectory)[1]
        return lambda x, condition, number: self._loss(x, y[number])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Only a trajectory knows which samples these are.

        Raises:
            ValueError: always.
        """
        raise ValueError("Measurement needs a trajectory, which knows the hidden examples; call start(trajectory)")

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        rest = (y - self.operator(x)).flatten(1)
        return rest.square().sum(1) / (2 * self.noise**2) if self.squared else rest.norm(dim=1)
