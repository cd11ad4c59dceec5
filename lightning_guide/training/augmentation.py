"""Non-leaking geometric augmentation (EDM): the network is conditioned on the augmentation parameters.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, section 5 and table 6, after Karras et al. 2020 (ADA),
https://arxiv.org/abs/2006.06676. Unlike there, images are resampled bicubically, without wavelet filters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.training.losses import LossTerms, TrainingLoss
from lightning_guide.utils.devices import to_device

__all__ = ["AugmentedLoss", "GeometricAugmentation"]


class GeometricAugmentation(nn.Module):
    """Random flips, zoom, turn, stretch and shift of images (B, C, H, W), each with probability `probability`.

    ==============  ==================  ==================================  =====================
    transformation  draws               effect on the image                 vector, (B, 9)
    ==============  ==================  ==================================  =====================
    mirror x        a0 = 0 or 1         x -> (1 - 2 a0) x, always           a0
    mirror y        a1 = 0 or 1         y -> (1 - 2 a1) y                   a1
    zoom            a2 ~ N(0, 1)        by 2^(0.2 a2)                       a2
    turn            a3 ~ U(-pi, pi)     by a3                               cos a3 - 1, sin a3
    stretch         a4 ~ U(-pi, pi),    by 2^(0.2 a5) along a4,             a5 cos a4, a5 sin a4
                    a5 ~ N(0, 1)        2^(-0.2 a5) across
    shift           a6, a7 ~ N(0, 1)    by a6 W / 8, a7 H / 8               a6, a7
    ==============  ==================  ==================================  =====================

    Parameters of transformations that are not applied are 0; the vector is zero in sampling. Images are mirrored beyond
    the border. Images that are only flipped keep their values exactly.
    """

    channels = 9

    def __init__(self, probability: float = 0.12, *, mirror: bool = True) -> None:
        """Configure the augmentation.

        Args:
            probability: of each transformation; 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ.
            mirror: draw x flips for all images, independent of `probability`.

        Raises:
            ValueError: if `probability` is not in [0, 1].
        """
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"GeometricAugmentation needs a probability between 0 and 1, got {probability}")
        self.probability, self.mirror = probability, mirror

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented images `(B, C, H, W)` and the augmentation vector `(B, 9)`.

        Raises:
            ValueError: if `x` is not of shape (B, C, H, W).
        """
        if x.ndim != 4:
            raise ValueError(f"GeometricAugmentation is for images (B, C, H, W), got data of shape {tuple(x.shape)}")
        a = self.draw(len(x), generator)
        return self.transform(x, a), self.vector(a)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw parameters a0 ... a7, `(count, 8)`."""
        options = {"generator": generator, "device": generator.device}
        flips = torch.randint(2, (count, 2), **options)  # type: ignore[call-overload]
        angles = (torch.rand(count, 2, **options) * 2 - 1) * math.pi  # type: ignore[call-overload]
        normal = torch.randn(count, 4, **options)  # type: ignore[call-overload]
        happens = (torch.rand(count, 5, **options) < self.probability).float()  # type: ignore[call-overload]
        y, zoom, turn, stretch, shift = happens.unbind(1)
        return torch.stack(
            [
                flips[:, 0] * float(self.mirror),
                flips[:, 1] * y,
                normal[:, 0] * zoom,
                angles[:, 0] * turn,
                angles[:, 1] * stretch,
                normal[:, 1] * stretch,
                normal[:, 2] * shift,
                normal[:, 3] * shift,
            ],
            dim=1,
        )

    def vector(self, a: Tensor) -> Tensor:
        """Return the augmentation vector `(B, 9)` of parameters `a` (B, 8), the input of the network."""
        a0, a1, a2, a3, a4, a5, a6, a7 = a.unbind(1)
        return torch.stack([a0, a1, a2, a3.cos() - 1, a3.sin(), a5 * a4.cos(), a5 * a4.sin(), a6, a7], dim=1)

    def transform(self, x: Tensor, a: Tensor) -> Tensor:
        """Return images `x` (B, C, H, W) transformed by parameters `a` (B, 8)."""
        flip_x, flip_y = (a[:, i].bool()[:, None, None, None] for i in (0, 1))
        x = torch.where(flip_x, x.flip(3), x)
        x = torch.where(flip_y, x.flip(2), x)
        H, W = x.shape[2:]
        matrix, shift = _forward_map(a, H, W)
        inverse = torch.linalg.inv_ex(matrix).inverse  # inv waits for the device, to see whether there is one
        # from pixels relative to the center to the units of grid_sample, in which an image extends from -1 to 1
        half = to_device(torch.tensor([W / 2, H / 2], dtype=x.dtype), x.device)
        theta = torch.cat([inverse * half / half[:, None], -(inverse @ shift) / half[:, None]], dim=2)
        grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
        moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return torch.where((a[:, 2:] != 0).any(1)[:, None, None, None], moved, x)


def _forward_map(a: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return matrix `(B, 2, 2)` and shift `(B, 2, 1)` of zoom, turn, stretch, then shift, in pixels from the center."""
    zoom, stretch = 2 ** (0.2 * a[:, 2]), 2 ** (0.2 * a[:, 5])
    along = torch.stack([stretch, 1 / stretch], dim=1)
    axes = _rotation(a[:, 4])
    matrix = axes @ (along[:, :, None] * axes.mT) @ _rotation(a[:, 3]) * zoom[:, None, None]
    shift = torch.stack([a[:, 6] * width / 8, a[:, 7] * height / 8], dim=1)
    return matrix, shift[:, :, None]


def _rotation(angle: Tensor) -> Tensor:
    """Return rotation matrices `(B, 2, 2)`."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], dim=1), torch.stack([s, c], dim=1)], dim=1)


class AugmentedLoss(TrainingLoss):
    """Another loss on augmented images, with the network conditioned on the augmentation; held-out losses are plain."""

    def __init__(self, loss: TrainingLoss, augmentation: GeometricAugmentation) -> None:
        """Configure the loss and the augmentation, whose vector is passed to the denoiser as keyword `augmentation`."""
        super().__init__(loss.noise)
        self.loss, self.augmentation = loss, augmentation

    def forward(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> LossTerms:
        """Return the terms of `TrainingLoss.forward` for augmented `clean` (B, C, H, W)."""
        clean, vector = self.augmentation(clean, generator)
        return self.loss(_WithAugmentation(denoiser, vector), clean, condition, generator)

    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        """Return the terms of `loss` without augmentation."""
        return self.loss.at(denoiser, clean, condition, sigma, noise)


class _WithAugmentation(Denoiser):
    """Denoiser with a fixed augmentation vector."""

    def __init__(self, denoiser: Denoiser, vector: Tensor) -> None:
        super().__init__()
        self.denoiser, self.vector = denoiser, vector
        self.sigma_data = denoiser.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, condition, augmentation=self.vector)
