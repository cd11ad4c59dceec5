"""Backbones of reward networks: image features by models of timm and open_clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.pretrained.loading import clip_model, timm_model
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Backbone", "OpenClipBackbone", "TimmBackbone"]


class Backbone(HasRecipe, nn.Module, ABC):
    """Base of backbones: features (B, F) of images in [0, 1] by a frozen model, which is loaded at first use.

    The model is not a submodule, so checkpoints of the optimized model never contain it.
    """

    def __init__(self) -> None:
        """Load nothing yet."""
        super().__init__()
        self._loaded: list[Any] = []
        self._size = 224
        self._mean: tuple[float, ...] = ()
        self._std: tuple[float, ...] = ()

    @abstractmethod
    def load(self) -> nn.Module:
        """Return the model and set size, mean and std of its input."""

    def features(self, image: Tensor) -> Tensor:
        """Return features of normalized images (B, 3, size, size)."""
        features: Tensor = self._loaded[0](image)
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Return features (B, F) of images (B, 1 or 3, H, W) in [0, 1].

        The shorter side is resized to that of the model, with antialiasing, and the center is cropped.
        """
        if not self._loaded:
            self._loaded.append(self.load().eval().requires_grad_(False))
        self._loaded[0].to(image.device)
        side = min(image.shape[2:])
        height, width = (round(length * self._size / side) for length in image.shape[2:])
        x = F.interpolate(image.expand(-1, 3, -1, -1), (height, width), mode="bilinear", antialias=True)
        top, left = (height - self._size) // 2, (width - self._size) // 2
        x = x[:, :, top : top + self._size, left : left + self._size]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self._mean, self._std))
        return self.features((x - mean) / std)


class TimmBackbone(Backbone):
    """Features of a timm model."""

    def __init__(self, name: str = "resnet18", weights: str | None = None) -> None:
        """Choose the model: `name` as in `timm.list_models()`, `weights` a local file, None for timm's own download."""
        super().__init__()
        self.name, self.weights = name, weights

    def load(self) -> nn.Module:
        """Return the model without its classifier.

        Raises:
            ValueError: if timm has no such model, or its weights cannot be loaded.
        """
        from timm.data import resolve_data_config  # takes a second, and most runs do not need it

        model = timm_model(self.name, weights=self.weights)
        model.reset_classifier(0)
        config = resolve_data_config(model=model)
        self._size, self._mean, self._std = config["input_size"][1], config["mean"], config["std"]
        return model


class OpenClipBackbone(Backbone):
    """CLIP image embeddings of an open_clip model, normalized to length 1."""

    def __init__(self, name: str = "ViT-L-14", weights: str = "openai") -> None:
        """Choose the model: `name` as in `open_clip.list_models()`, `weights` a tag of open_clip or a local file."""
        super().__init__()
        self.name, self.weights = name, weights

    def load(self) -> nn.Module:
        """Return the model.

        Raises:
            ValueError: if open_clip has no such model, or its weights cannot be loaded.
        """
        model = clip_model(self.name, weights=self.weights)
        size = model.visual.image_size
        self._size = size[0] if isinstance(size, tuple | list) else size
        self._mean, self._std = model.visual.image_mean, model.visual.image_std
        return model

    def features(self, image: Tensor) -> Tensor:
        """Return embeddings (B, F) of length 1."""
        return F.normalize(self._loaded[0].encode_image(image), dim=1)
