"""DINOv2 features of published FD_DINOv2, Stein et al. 2023, https://arxiv.org/abs/2306.04675.

DINOv2: Oquab et al. 2023, https://arxiv.org/abs/2304.07193.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.evaluation.features.base import TimmFeatures

__all__ = ["DINOv2Features", "interpolate_positions"]


class DINOv2Features(TimmFeatures):
    """DINOv2 ViT-L/14 class token (B, 1024), of images resized directly to 224 x 224 (bicubic, antialiased).

    Pixels / 255 are normalized by the mean and standard deviation of ImageNet. The model was trained with positions of
    37 x 37 patches (518 pixels); those of 16 x 16 are interpolated as in DINOv2 itself, see `interpolate_positions`,
    unlike in `TimmFeatures(size=224)`.
    """

    published = "fd_dinov2"

    def __init__(self, weights: str | None = None, *, name: str = "vit_large_patch14_dinov2", size: int = 224) -> None:
        """Choose `weights`: a local file of timm's model `name`, or DINOv2's own file; None for timm's download."""
        super().__init__(name, weights, size=size)

    def comparable(self) -> str:
        """Return that published FD_DINOv2 are, for the published model and size."""
        if (self.name, self.size) != ("vit_large_patch14_dinov2", 224):
            return super().comparable()
        return (
            "FD_DINOv2 of Stein et al. 2023 and of EDM2, with images as they are (bicubic, antialiased, to 224); no "
            "published figure was reproduced"
        )

    def model(self) -> Any:
        """Return the timm model with positions for images of `size`.

        Raises:
            ValueError: if it is not a vision transformer with a class token and learned positions, or its weights
                cannot be loaded.
        """
        model = self.plain_model()
        positions, prefix = getattr(model, "pos_embed", None), getattr(model, "num_prefix_tokens", 0)
        if positions is None or prefix != 1 or getattr(model, "global_pool", "") != "token":
            raise ValueError(
                f"{self.name} is not a DINOv2: expected a vision transformer that returns its one class token"
            )
        patch = model.patch_embed.patch_size[0]
        if self.size is None or self.size % patch:
            raise ValueError(f"{self.name} takes whole patches, size a multiple of {patch}, got {self.size}")
        model.set_input_size(img_size=self.size)
        new = interpolate_positions(positions.detach(), self.size // patch)
        model.pos_embed = nn.Parameter(new, requires_grad=False)
        return model


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Interpolate positions (1, 1 + n^2, C), class token first, to side x side patches, (1, 1 + side^2, C).

    Bicubic without antialiasing, at the scale (side + 0.1) / n. The 0.1 guards against rounding in DINOv2's own code;
    it shifts the sampling points slightly, and published statistics were computed with it.
    """
    token, grid = positions[:, :1], positions[:, 1:]
    n = round((positions.shape[1] - 1) ** 0.5)
    if n == side:
        return positions
    image = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / n
    new = F.interpolate(image, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    assert new.shape[-2:] == (side, side)
    return torch.cat([token, new.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
