"""A small classifier of pictures by attention between patches: it shares no layer with `SmallClassifier`.

Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929. Made to judge what a convolutional network has guided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.networks.classifier import Classifier

__all__ = ["PatchClassifier"]


class PatchClassifier(Classifier):
    """Patches as tokens with learned positions, transformer blocks, the logits of their mean.

    Submodules: ``patches`` (pictures to tokens), ``blocks``, ``norm``, ``head`` (features to logits).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int,
        patch_size: int = 2,
        channels: int = 64,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        """Builds the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one picture.
            num_classes: number of classes.
            patch_size: side of a patch, divides the sides of the picture.
            channels: width of the tokens.
            depth: number of blocks.
            heads: of attention in each block, divide the channels.
            dropout: probability in the blocks, while training.

        Raises:
            ValueError: if the patches do not fit the picture, the heads the channels, or there is but one class.
        """
        super().__init__()
        if len(data_shape) != 3 or any(side % patch_size for side in data_shape[1:]) or num_classes < 2:
            raise ValueError(
                f"PatchClassifier needs data_shape (C, H, W) with sides in multiples of {patch_size} and "
                f"num_classes >= 2, got {tuple(data_shape)} and {num_classes}"
            )
        if channels % heads:
            raise ValueError(f"PatchClassifier: {channels} channels must be a multiple of {heads} heads")
        self.data_shape, self.num_classes = tuple(data_shape), num_classes
        C, height, width = self.data_shape
        self.patches = nn.Conv2d(C, channels, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(height * width // patch_size**2, channels))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    channels, heads, 2 * channels, dropout, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (B, num_classes) of `x` (B, C, H, W), float in [-1, 1].

        Raises:
            ValueError: if the pictures have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"pictures have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        tokens = self.patches(x).flatten(2).mT + self.positions  # (B, patches, channels)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
