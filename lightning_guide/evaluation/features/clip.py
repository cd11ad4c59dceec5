"""CLIP image embeddings, Radford et al. 2021, https://arxiv.org/abs/2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_guide.evaluation.features.base import FeatureExtractor, check_images
from lightning_guide.pretrained.loading import clip_input, clip_model
from lightning_guide.utils.images import preprocess_image

__all__ = ["ClipFeatures"]


class ClipFeatures(FeatureExtractor):
    """CLIP image embeddings of an open_clip model, of images resized and normalized as in its training.

    The whole image is resized, with antialiasing, and not cropped; one channel is repeated three times.
    """

    def __init__(self, name: str = "ViT-L-14-336", weights: str = "openai") -> None:
        """Choose the model: `name` as in `open_clip.list_models()`, `weights` a local file or a tag of open_clip."""
        super().__init__()
        self.name, self.weights = name, weights

    def extract(self, x: Tensor) -> Tensor:
        """Return embeddings (B, F) of images uint8 (B, 1 or 3, H, W)."""
        check_images(x)
        model = self.network(x)
        options = clip_input(model)
        resize = options | {"mean": (0.0,), "std": (1.0,)}  # values are clamped before they are normalized
        image = preprocess_image(x.to(torch.float32) / 255, **resize).clamp(0, 1)
        features: Tensor = model.encode_image(preprocess_image(image, mean=options["mean"], std=options["std"]))
        return features

    def downloads(self) -> bool:
        """Return whether the weights are a tag of open_clip rather than a file."""
        return not Path(self.weights).expanduser().is_file()

    def comparable(self) -> str:
        """Return that published CMMDs are, for the model of the paper."""
        if self.name.removesuffix("-quickgelu") != "ViT-L-14-336":
            return super().comparable()
        return (
            "CMMDs of Jayasumana et al. 2024 with OpenAI's weights, with images as they are (bicubic, antialiased, to "
            "336, not cropped); OpenAI's weights in a local file need ViT-L-14-336-quickgelu; no published figure was "
            "reproduced"
        )

    def words(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Return embeddings (T, F) of `texts`.

        Raises:
            ValueError: if the weights cannot be found.
        """
        import open_clip

        model = self.network(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return model.encode_text(open_clip.get_tokenizer(self.name)(list(texts)).to(device)).to(torch.float32)

    def _load(self) -> nn.Module:
        model: nn.Module = clip_model(self.name, weights=self.weights)
        return model

    def title(self) -> str:
        """Return the class with the name of the model."""
        return f"{type(self).__name__}({self.name})"
