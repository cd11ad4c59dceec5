"""Feature extractor from any torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.pretrained.loading import read_weights
from lightning_guide.utils.images import preprocess_image

__all__ = ["ModuleFeatures"]


class ModuleFeatures(FeatureExtractor):
    """Features module((x / 255 - mean) / std) of images, module(x) of float points.

    With `size`, the whole image is resized first, bicubic and antialiased, not cropped.
    """

    prefix = "module"

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
        """Choose the module and the preprocessing of images.

        Args:
            module: by its class_path in a config.
            weights: file of its state dict (safetensors, or torch without pickles).
            size: side of the resized images; None: no resizing.
            channels: number of channels that a gray image is repeated to.
            mean: one number for each channel, or for all; by default pixels lie in [-1, 1].
            std: likewise.

        Raises:
            ValueError: if the weights are not those of the module, or a setting is out of range.
        """
        super().__init__()
        if (size is not None and size < 1) or (channels is not None and channels < 1) or not all(s > 0 for s in std):
            raise ValueError(
                "ModuleFeatures needs size >= 1, channels >= 1 and std > 0, "
                f"got size {size}, channels {channels} and std {list(std)}"
            )
        self.weights, self._held = weights, (module.eval().requires_grad_(False),)
        self.size, self.channels, self.mean, self.std = size, channels, tuple(mean), tuple(std)
        if weights is not None:
            read_weights(module, weights)

    def extract(self, x: Tensor) -> Tensor:
        """Return features of images uint8 (B, C, H, W), or of float points (B, *)."""
        features = self.network(x)(self._preprocess(x) if x.dtype == torch.uint8 else x.to(torch.float32))
        if not isinstance(features, Tensor) or features.shape[:1] != x.shape[:1]:
            what = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.title()} returned {what} for {len(x)} samples; expected a tensor ({len(x)}, *)")
        return features

    def title(self) -> str:
        """Return the class with that of the module and the preprocessing of images."""
        how = f"size {self.size}, channels {self.channels}, mean {list(self.mean)}, std {list(self.std)}"
        kind = type(self.network())
        return f"{type(self).__name__}({kind.__module__}.{kind.__qualname__}, {how})"

    def _preprocess(self, x: Tensor) -> Tensor:
        size = None if self.size is None else (self.size, self.size)
        return preprocess_image(
            x.to(torch.float32) / 255, mean=self.mean, std=self.std, size=size, channels=self.channels
        )
