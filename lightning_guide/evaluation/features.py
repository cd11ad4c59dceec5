"""Feature extractors: what a picture looks like to a Frechet distance or to precision and recall."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.library_models import timm_model
from lightning_guide.networks.classifier import SmallClassifier
from lightning_guide.raw_network import raw_network

__all__ = ["ClassifierFeatures", "FeatureExtractor", "RawPixels", "TimmFeatures", "check_pictures"]


class FeatureExtractor(nn.Module, ABC):
    """Base of extractors: data in stored form (B, *) -> features (B, F), float32.

    Always in eval mode, without gradients and autocast. A copy is the same object: clones of a metric share it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, F) of `x`; `extract` says of what kind it must be.

        Raises:
            ValueError: if `x` is not what the extractor was made for, or its weights cannot be found.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.extract(x).flatten(1).to(torch.float32)

    @abstractmethod
    def extract(self, x: Tensor) -> Tensor:
        """Features (B, *) of `x`, the part that subclasses write; call the extractor itself instead."""

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in eval mode."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureExtractor:
        """Itself."""
        return self


class RawPixels(FeatureExtractor):
    """The data themselves: pictures as x / 127.5 - 1, float points as they are."""

    def extract(self, x: Tensor) -> Tensor:
        """`x` (B, *), uint8 or float."""
        return x.to(torch.float32) / 127.5 - 1 if x.dtype == torch.uint8 else x


class ClassifierFeatures(FeatureExtractor):
    """Penultimate layer of the classifier that the run in folder `run` has trained (`modules.ClassifierModule`).

    The newest one is read at first use, so that the object can be configured before the classifier exists.
    """

    def __init__(self, run: str) -> None:
        """`run` is the folder of the classifier's training run."""
        super().__init__()
        self.run = run
        self._classifier: SmallClassifier | None = None

    def extract(self, x: Tensor) -> Tensor:
        """Features of pictures uint8 (B, C, H, W) of the shape that the classifier was trained on."""
        return self.classifier(x.device).features(_scaled(x))

    def logits(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of pictures uint8 (B, C, H, W).

        Raises:
            ValueError: as for features.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.classifier(x.device)(_scaled(x))

    def classifier(self, device: torch.device) -> SmallClassifier:
        """The classifier on `device`, frozen.

        Raises:
            ValueError: if the run has none, or its newest snapshot is damaged or holds something else.
        """
        if self._classifier is None:
            self._classifier = self._load()
        return self._classifier.to(device)

    def _load(self) -> SmallClassifier:
        network = raw_network(self.run, kind=SmallClassifier, what="classifier")
        return network.eval().requires_grad_(False)


class TimmFeatures(FeatureExtractor):
    """Pooled features of a timm model, on pictures resized and normalised the way the model was trained.

    The whole picture is resized, with antialiasing, and not cropped; one channel is repeated three times. The model
    is read at first use.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        """`name` as in `timm.list_models()`; `weights` a local file, None for timm's own download."""
        super().__init__()
        self.name = name
        self.weights = weights
        self._model: nn.Module | None = None
        self._config: dict[str, Any] = {}

    def extract(self, x: Tensor) -> Tensor:
        """Features of pictures uint8 (B, 1 or 3, H, W) of any size."""
        check_pictures(x)
        if self._model is None:
            self._load()
        assert self._model is not None
        channels, height, width = self._config["input_size"]
        mode = "bilinear" if self._config["interpolation"] == "bilinear" else "bicubic"
        picture = x.to(torch.float32).expand(-1, channels, -1, -1) / 255
        picture = F.interpolate(picture, (height, width), mode=mode, align_corners=False, antialias=True)
        mean, std = (x.new_tensor(self._config[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
        return self._model.to(x.device)((picture - mean) / std)

    def _load(self) -> None:
        from timm.data import resolve_data_config  # takes a second, and most runs have no use for it

        model = timm_model(self.name, weights=self.weights)
        model.reset_classifier(0)
        self._config = resolve_data_config(model=model)
        self._model = model


def check_pictures(x: Tensor) -> None:
    """Raises ValueError unless `x` holds pictures uint8 (B, C, H, W)."""
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ValueError(f"this extractor takes pictures uint8 (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")


def _scaled(x: Tensor) -> Tensor:
    """Pictures as a classifier sees them, x / 127.5 - 1."""
    check_pictures(x)
    return x.to(torch.float32) / 127.5 - 1
