r"""Reward networks: a backbone that sees the picture, and a head that gives a number.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, take ResNet-18 with ImageNet weights and a random linear head that is
never trained. Aesthetics predictors are heads, trained by others, on CLIP embeddings.
"""

from __future__ import annotations

from torch import Tensor

from lightning_guide.objectives.backbones import Backbone
from lightning_guide.objectives.heads import Head
from lightning_guide.objectives.objective import Objective

__all__ = ["Reward"]


class Reward(Objective):
    """head(backbone((x + 1) / 2 clamped to [0, 1])), as in the paper.

    The backbone normalises as in its own training; the published experiment takes CLIP's mean and deviation instead.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """`head` on the features of `backbone`."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        """Rewards (B,) of pictures `x` (B, 1 or 3, H, W) in [-1, 1].

        Raises:
            ValueError: if x are no pictures.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"a reward network takes pictures (B, 1 or 3, H, W), got {tuple(x.shape)}")
        return self.head(self.backbone(((x + 1) / 2).clamp(0, 1)))
