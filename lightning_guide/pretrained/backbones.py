"""Backbones of reward networks: image features by models of timm and open_clip, or of any class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import clip_input, clip_model, named_network, timm_input, timm_model
from lightning_guide.utils.images import preprocess_image
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Backbone", "NamedBackbone", "OpenClipBackbone", "TimmBackbone"]

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


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

    def __init__(self, name: str = "ViT-L-14", weights: str | None = "openai") -> None:
        """Choose the model: `name` as in `open_clip.list_models()`, `weights` a tag or a local file, None: random."""
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


class NamedBackbone(Backbone):
    """Features before the layer `without` of a network of any class, such as those of torchvision.

    The defaults are the reward of Guo et al. 2024, https://arxiv.org/abs/2404.14743: a ResNet-18 without its last
    layer, of images of 224 pixels normalized as for CLIP. `name` is imported, so use only trusted code.
    """

    def __init__(
        self,
        name: str = "torchvision.models.resnet18",
        weights: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        without: str | None = "fc",
        size: int = 224,
        mean: Sequence[float] = _CLIP_MEAN,
        std: Sequence[float] = _CLIP_STD,
    ) -> None:
        """Choose the network.

        Args:
            name: `package.module.Class` of an `nn.Module`, or of a function that returns one.
            weights: file of its state dict (safetensors, or torch without pickles); None: as `name` makes it.
            options: keyword arguments of the class, such as torchvision's `weights: IMAGENET1K_V1`, a download.
            without: name of the layer that only passes on its input; None: the output of the whole network.
            size: length of the shorter side in pixels; the center is cropped.
            mean: of pixels in [0, 1], by channel.
            std: standard deviation, likewise.
        """
        super().__init__()
        self.name, self.weights, self.options, self.without = name, weights, dict(options or {}), without
        self.size, self.mean, self.std = size, list(mean), list(std)

    def _load(self) -> nn.Module:
        network = named_network(self.name, self.weights, self.options)
        if self.without is not None:
            if self.without not in dict(network.named_modules()):
                children = ", ".join(name for name, _ in network.named_children())
                raise ValueError(f"{self.name} has no layer {self.without!r} to leave out; found {children}")
            network.set_submodule(self.without, nn.Identity())
        return network

    def input_format(self) -> dict[str, Any]:
        """Return the chosen input format."""
        return {"size": (self.size, self.size), "mean": self.mean, "std": self.std, "channels": len(self.mean)}

    def features(self, image: Tensor) -> Tensor:
        """Return features (B, F), flattened."""
        return super().features(image).flatten(1)
