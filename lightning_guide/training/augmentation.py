"""Geometric augmentation that the network is told of, so that it does not leak into samples.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, section 5 and table 6, after Karras et al. 2020 (ADA),
https://arxiv.org/abs/2006.06676. Other than there, pictures are resampled bicubically, without the wavelet filters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.training.losses import LossTerms, TrainingLoss

__all__ = ["AugmentedLoss", "GeometricAugmentation"]


class GeometricAugmentation(nn.Module):
    """Random flips, zoom, turn, stretch and shift of pictures (B, C, H, W), each with probability `probability`.

    ==============  ==================  ==================================  =====================
    transformation  draws               picture                             what is told, (B, 9)
    ==============  ==================  ==================================  =====================
    mirror x        a0 = 0 or 1         x -> (1 - 2 a0) x, always           a0
    mirror y        a1 = 0 or 1         y -> (1 - 2 a1) y                   a1
    zoom            a2 ~ N(0, 1)        by 2^(.2 a2)                        a2
    turn            a3 ~ U(-pi, pi)     by a3                               cos a3 - 1, sin a3
    stretch         a4 ~ U(-pi, pi),    by 2^(.2 a5) along a4,              a5 cos a4, a5 sin a4
                    a5 ~ N(0, 1)        2^(-.2 a5) across
    shift           a6, a7 ~ N(0, 1)    by a6 W / 8, a7 H / 8               a6, a7
    ==============  ==================  ==================================  =====================

    What is not drawn is 0, and zeros are what the network is told when it samples. Beyond the border pictures are
    mirrored. Pictures that are only flipped keep their values exactly.
    """

    channels = 9

    def __init__(self, probability: float = 0.12, *, mirror: bool = True) -> None:
        """`probability` of each transformation, .12 for CIFAR-10, .15 for FFHQ and AFHQ; `mirror`: flip x always.

        Raises:
            ValueError: if `probability` is none.
        """
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"GeometricAugmentation needs a probability between 0 and 1, got {probability}")
        self.probability, self.mirror = probability, mirror

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures `(B, C, H, W)` and what the network is told of them, `(B, 9)`.

        Raises:
            ValueError: if `x` are no pictures.
        """
        if x.ndim != 4:
            raise ValueError(f"GeometricAugmentation is for pictures (B, C, H, W), got data of shape {tuple(x.shape)}")
        a = self.draw(len(x), generator)
        return self.transform(x, a), self.told(a)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Parameters a0 ... a7, `(count, 8)`."""
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

    def told(self, a: Tensor) -> Tensor:
        """What the network is told, `(B, 9)`, of parameters `a` (B, 8)."""
        a0, a1, a2, a3, a4, a5, a6, a7 = a.unbind(1)
        return torch.stack([a0, a1, a2, a3.cos() - 1, a3.sin(), a5 * a4.cos(), a5 * a4.sin(), a6, a7], dim=1)

    def transform(self, x: Tensor, a: Tensor) -> Tensor:
        """Pictures `x` (B, C, H, W) transformed by `a` (B, 8)."""
        flip_x, flip_y = (a[:, i].bool()[:, None, None, None] for i in (0, 1))
        x = torch.where(flip_x, x.flip(3), x)
        x = torch.where(flip_y, x.flip(2), x)
        H, W = x.shape[2:]
        matrix, shift = _forward_map(a, H, W)
        inverse = torch.linalg.inv(matrix)
        # from pixels around the middle to the units of grid_sample, in which a picture reaches from -1 to 1
        half = torch.tensor([W / 2, H / 2], dtype=x.dtype, device=x.device)
        theta = torch.cat([inverse * half / half[:, None], -(inverse @ shift) / half[:, None]], dim=2)
        grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
        moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return torch.where((a[:, 2:] != 0).any(1)[:, None, None, None], moved, x)


def _forward_map(a: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Zoom, turn, stretch, then shift, in pixels around the middle: matrix `(B, 2, 2)` and shift `(B, 2, 1)`."""
    zoom, stretch = 2 ** (0.2 * a[:, 2]), 2 ** (0.2 * a[:, 5])
    along = torch.stack([stretch, 1 / stretch], dim=1)
    axes = _rotation(a[:, 4])
    matrix = axes @ (along[:, :, None] * axes.mT) @ _rotation(a[:, 3]) * zoom[:, None, None]
    shift = torch.stack([a[:, 6] * width / 8, a[:, 7] * height / 8], dim=1)
    return matrix, shift[:, :, None]


def _rotation(angle: Tensor) -> Tensor:
    """Rotation matrices `(B, 2, 2)`."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], dim=1), torch.stack([s, c], dim=1)], dim=1)


class AugmentedLoss(TrainingLoss):
    """Another loss of augmented pictures; the network is told how they were. Held-out losses are not augmented."""

    def __init__(self, loss: TrainingLoss, augmentation: GeometricAugmentation) -> None:
        """`loss` of the pictures that `augmentation` makes; the denoiser takes `augmentation=` beside the condition."""
        super().__init__(loss.noise)
        self.loss, self.augmentation = loss, augmentation

    def forward(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> LossTerms:
        """As `TrainingLoss.forward`, of `clean` augmented."""
        clean, vector = self.augmentation(clean, generator)
        return self.loss(_Told(denoiser, vector), clean, condition, generator)

    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        """Those of the other loss, of `clean` as they are."""
        return self.loss.at(denoiser, clean, condition, sigma, noise)


class _Told(Denoiser):
    """A denoiser that is told how its pictures were augmented."""

    def __init__(self, denoiser: Denoiser, vector: Tensor) -> None:
        super().__init__()
        self.denoiser, self.vector = denoiser, vector
        self.sigma_data = denoiser.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, condition, augmentation=self.vector)
