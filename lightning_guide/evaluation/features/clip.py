"""CLIP image embeddings, Radford et al. 2021, https://arxiv.org/abs/2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.evaluation.features.base import FeatureExtractor, check_images
from lightning_guide.pretrained.loading import clip_model

__all__ = ["ClipFeatures"]


class ClipFeatures(FeatureExtractor):
    """CLIP image embeddings of an open_clip model, of images resized and normalized as in its training.

    The whole image is resized, with antialiasing, and not cropped; one channel is repeated three times.
    """

    def __init__(self, name: str = "ViT-L-14-336", weights: str = "openai") -> None:
        """Choose the model: `name` as in `open_clip.list_models()`, `weights` a local file or a tag of open_clip."""
        super().__init__()
        self.name, self.weights = name, weights
        self._model: Any = None

    def extract(self, x: Tensor) -> Tensor:
        """Return embeddings (B, F) of images uint8 (B, 1 or 3, H, W)."""
        check_images(x)
        model = self.model(x.device)
        size = model.visual.image_size
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        image = x.to(torch.float32).expand(-1, 3, -1, -1) / 255
        image = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (
            image.new_tensor(values)[:, None, None] for values in (model.visual.image_mean, model.visual.image_std)
        )
        return model.encode_image((image.clamp(0, 1) - mean) / std)

    def words(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Return embeddings (T, F) of `texts`.

        Raises:
            ValueError: if the weights cannot be found.
        """
        import open_clip

        model = self.model(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return model.encode_text(open_clip.get_tokenizer(self.name)(list(texts)).to(device)).to(torch.float32)

    def model(self, device: torch.device) -> Any:
        """Return the frozen open_clip model on `device`.

        Raises:
            ValueError: if open_clip has no such model, or its weights cannot be loaded.
        """
        self.load()
        return self._model.to(device)

    def load(self) -> None:
        """Load the model.

        Raises:
            ValueError: as `model`.
        """
        if self._model is None:
            self._model = clip_model(self.name, weights=self.weights)

    def title(self) -> str:
        """Return the class with the name of the model."""
        return f"{type(self).__name__}({self.name})"
