"""Any torch module as a feature extractor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.pretrained.loading import read_weights
from lightning_guide.utils.images import preprocess_image

__all__ = ["ModuleFeatures"]


class ModuleFeatures(FeatureExtractor):
    """Features module((x / 255 - mean) / std) of pictures, module(x) of float points.

    With `size`, pictures are resized first, bicubic and antialiased; the whole picture, not cropped.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: str | None = None,
        *,
        size: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        """`module` by its class_path; `weights`: a file of its state dict (safetensors, or torch without pickles).

        `channels`: gray pictures are repeated so many times. `mean` and `std`: one number for each channel, or for all;
        by default pixels lie in [-1, 1].

        Raises:
            ValueError: if the weights are not those of the module, or a setting means nothing.
        """
        super().__init__()
        if (size is not None and size < 1) or (channels is not None and channels < 1) or not all(s > 0 for s in std):
            raise ValueError(
                "ModuleFeatures needs size >= 1, channels >= 1 and std > 0, "
                f"got size {size}, channels {channels} and std {list(std)}"
            )
        self.module, self.weights = module, weights
        self.size, self.channels, self.mean, self.std = size, channels, tuple(mean), tuple(std)
        if weights is not None:
            read_weights(module, weights)
        self.eval().requires_grad_(False)

    def extract(self, x: Tensor) -> Tensor:
        """Features of pictures uint8 (B, C, H, W), or of points (B, *) in float."""
        features = self.module(self._picture(x) if x.dtype == torch.uint8 else x.to(torch.float32))
        if not isinstance(features, Tensor) or features.shape[:1] != x.shape[:1]:
            what = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.title()} gave {what} for {len(x)} samples; expected a tensor ({len(x)}, *)")
        return features

    def title(self) -> str:
        """With the class of the module and how it is shown pictures."""
        how = f"size {self.size}, channels {self.channels}, mean {list(self.mean)}, std {list(self.std)}"
        return f"{type(self).__name__}({type(self.module).__module__}.{type(self.module).__qualname__}, {how})"

    def _picture(self, x: Tensor) -> Tensor:
        size = None if self.size is None else (self.size, self.size)
        return preprocess_image(
            x.to(torch.float32) / 255, mean=self.mean, std=self.std, size=size, channels=self.channels
        )
