"""Backbones of reward networks: image features by models of timm and open_clip."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import clip_input, clip_model, timm_input, timm_model
from lightning_guide.utils.images import preprocess_image
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Backbone", "OpenClipBackbone", "TimmBackbone"]


class Backbone(HasRecipe, FrozenNetwork, nn.Module):
    """Base of backbones: features (B, F) of images in [0, 1] by a `FrozenNetwork`."""

    @abstractmethod
    def input_format(self) -> dict[str, Any]:
        """Return size (height, width), mean, std and channels of the input, as taken by `preprocess_image`."""

    def features(self, image: Tensor) -> Tensor:
        """Return features of normalized images (B, 3, size, size)."""
        features: Tensor = self.network(image)(image)
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Return features (B, F) of images (B, 1 or 3, H, W) in [0, 1].

        The shorter side is resized to that of the model, with antialiasing, and the center is cropped.
        """
        options = self.input_format()
        size, side = options["size"][0], min(image.shape[2:])
        height, width = (round(length * size / side) for length in image.shape[2:])
        x = preprocess_image(image, **options | {"size": (height, width)}, mode="bilinear")
        top, left = (height - size) // 2, (width - size) // 2
        return self.features(x[:, :, top : top + size, left : left + size])


class TimmBackbone(Backbone):
    """Features of a timm model."""

    def __init__(self, name: str = "resnet18", weights: str | None = None) -> None:
        """Choose the model: `name` as in `timm.list_models()`, `weights` a local file, None for timm's own download."""
        super().__init__()
        self.name, self.weights = name, weights

    def _load(self) -> nn.Module:
        model: nn.Module = timm_model(self.name, weights=self.weights)
        model.reset_classifier(0)  # type: ignore[operator]
        return model

    def input_format(self) -> dict[str, Any]:
        """Return the input format of the timm model."""
        return timm_input(self.network())


class OpenClipBackbone(Backbone):
    """CLIP image embeddings of an open_clip model, normalized to length 1."""

    def __init__(self, name: str = "ViT-L-14", weights: str = "openai") -> None:
        """Choose the model: `name` as in `open_clip.list_models()`, `weights` a tag of open_clip or a local file."""
        super().__init__()
        self.name, self.weights = name, weights

    def _load(self) -> nn.Module:
        model: nn.Module = clip_model(self.name, weights=self.weights)
        return model

    def input_format(self) -> dict[str, Any]:
        """Return the input format of the open_clip model."""
        return clip_input(self.network())

    def features(self, image: Tensor) -> Tensor:
        """Return embeddings (B, F) of length 1."""
        return F.normalize(self.network(image).encode_image(image), dim=1)
