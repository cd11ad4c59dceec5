"""Base of feature extractors, raw pixels, and features of trained classifiers and timm models."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import timm_input, timm_model
from lightning_guide.runs.models import raw_network
from lightning_guide.snapshots.file import checksum
from lightning_guide.utils.images import preprocess_image

__all__ = [
    "ClassifierFeatures",
    "FeatureExtractor",
    "Identity",
    "RawPixels",
    "TimmFeatures",
    "check_images",
    "weights_hash",
]


Value = TypeVar("Value")


class _OfLastBatch(NamedTuple):
    """What was computed of one batch, by name."""

    batch: weakref.ref[Tensor]
    version: int | None
    found: dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """Identity of an extractor in reports and stored statistics; results of different identities are not comparable.

    Attributes:
        name: class and the settings that change the features.
        weights: `weights_hash` of the network; "" without weights.
    """

    name: str
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {f'weights {self.weights[:16]}' if self.weights else 'no weights'}"


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of name, type, shape and bytes of all tensors of a state dict; "" if it is empty."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return checksum(tensors, {}) if tensors else ""


class FeatureExtractor(FrozenNetwork, nn.Module):
    """Base of feature extractors: data in stored form (B, *) -> features (B, F), float32.

    A `FrozenNetwork`, without gradients and autocast. A copy is the same object, so clones of a metric share it. The
    features of the last batch are cached, so that several metrics cost one network call.

    Attributes:
        published: name of these features in published files of statistics, such as "fid"; None without a name.
        prefix: of the names of weights in their hash, fixed so that hashes in stored statistics remain valid.
    """

    published: ClassVar[str | None] = None
    prefix: ClassVar[str] = "_model"
    _last: _OfLastBatch | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, F) of `x`, of the type and shape that `extract` takes.

        Raises:
            ValueError: if `x` has another type or shape, or the weights cannot be found.
        """
        return self.of_batch("features", x, lambda: self.extract(x).flatten(1).to(torch.float32))

    def of_batch(self, name: str, x: Tensor, compute: Callable[[], Value]) -> Value:
        """Return what `compute` returns for the batch `x`, called once for each `name` as long as it is the last one.

        Computed without gradients and autocast.
        """
        version = None if x.is_inference() else x._version  # inference tensors have no version counter
        last = self._last
        if version is None or last is None or last.batch() is not x or last.version != version:
            last = _OfLastBatch(weakref.ref(x), version, {})
        if name not in last.found:
            self._last = None if version is None else last
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                last.found[name] = compute()
        return cast(Value, last.found[name])

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes except the cached batch."""
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    @abstractmethod
    def extract(self, x: Tensor) -> Tensor:
        """Return features (B, *) of `x`; implemented by subclasses and called by `forward`."""

    def load(self) -> None:
        """Load the weights, unless they are loaded already.

        Raises:
            ValueError: if they cannot be found.
        """
        self.network()

    def _load(self) -> nn.Module:
        return nn.Identity()  # of extractors without weights

    def title(self) -> str:
        """Return the class and the settings that change the features."""
        return type(self).__name__

    def downloads(self) -> bool:
        """Return whether the weights come from a package's download, or its cache, rather than from a named file."""
        return False

    def comparable(self) -> str:
        """Return which figures those of this extractor compare with, and how images have to be resized for it."""
        return "results of the same extractor with the same weights and sizes of images alone"

    def checked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes (C, H, W), by name, of the images of `verify`: one to make smaller, one to enlarge."""
        return {"256": (3, 256, 256), "32": (3, 32, 32)}

    @cached_property
    def identity(self) -> Identity:
        """Name and hash of the weights, which are loaded for it.

        Raises:
            ValueError: if they cannot be found.
        """
        weights = {f"{self.prefix}.{name}": value for name, value in self.network().state_dict().items()}
        return Identity(self.title(), weights_hash(self.state_dict() | weights))

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Keep eval mode, whatever the `mode`."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureExtractor:
        """Return the extractor itself."""
        return self


class RawPixels(FeatureExtractor):
    """Identity features: images as x / 127.5 - 1, float points unchanged."""

    def extract(self, x: Tensor) -> Tensor:
        """Return `x` (B, *), uint8 or float, as float."""
        return x.to(torch.float32) / 127.5 - 1 if x.dtype == torch.uint8 else x


class ClassifierFeatures(FeatureExtractor):
    """Penultimate layer of a classifier trained by `ClassifierModule`.

    The newest raw weights are loaded at first use, so the object can be configured before the classifier exists.
    """

    prefix = "_classifier"

    def __init__(self, run: str) -> None:
        """Take the run folder of the classifier."""
        super().__init__()
        self.run = run

    def extract(self, x: Tensor) -> Tensor:
        """Return features of images uint8 (B, C, H, W) of the shape of the training images."""
        return self.classifier(x.device).features(_scaled(x))

    def checked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of the training images alone."""
        shape: tuple[int, ...] = self.network().data_shape
        return {"x".join(map(str, shape)): shape}

    def logits(self, x: Tensor) -> Tensor:
        """Return class logits (B, K) of images uint8 (B, C, H, W).

        Raises:
            ValueError: as for features.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.classifier(x.device)(_scaled(x))

    def classifier(self, device: torch.device) -> SmallClassifier:
        """Return the frozen classifier on `device`.

        Raises:
            ValueError: if the run has none, or its newest snapshot is damaged or holds something else.
        """
        classifier: SmallClassifier = self.network(device)
        return classifier

    def _load(self) -> nn.Module:
        return raw_network(self.run, kind=SmallClassifier, what="classifier")


class TimmFeatures(FeatureExtractor):
    """Pooled features of a timm model, of images resized and normalized as in its training.

    The whole image is resized, with antialiasing, and not cropped; one channel is repeated three times.
    """

    def __init__(self, name: str, weights: str | None = None, *, size: int | None = None) -> None:
        """Choose the model.

        Args:
            name: as in `timm.list_models()`.
            weights: a local file; None for timm's own download.
            size: images are resized to `size` x `size` instead of the model's own size; transformers with learned
                positions then interpolate them (bicubic, antialiased).

        Raises:
            ValueError: if size is below 1.
        """
        super().__init__()
        if size is not None and size < 1:
            raise ValueError(f"{type(self).__name__} needs size >= 1, got {size}")
        self.name, self.weights, self.size = name, weights, size

    def extract(self, x: Tensor) -> Tensor:
        """Return features of images uint8 (B, 1 or 3, H, W) of any size."""
        check_images(x)
        network = self.network(x)
        options = timm_input(network) | ({} if self.size is None else {"size": (self.size, self.size)})
        mode: Literal["bicubic", "bilinear"] = "bicubic"
        if network.pretrained_cfg.get("interpolation") == "bilinear":
            mode = "bilinear"
        features: Tensor = network(preprocess_image(x.to(torch.float32) / 255, **options, mode=mode))
        return features

    def downloads(self) -> bool:
        """Return whether no file is named."""
        return self.weights is None

    def title(self) -> str:
        """Return the class with the name of the model, and the image size if it is not the model's own."""
        return f"{type(self).__name__}({self.name}{'' if self.size is None else f', size {self.size}'})"

    def _load(self) -> nn.Module:
        model: nn.Module = self.model()
        model.reset_classifier(0)  # type: ignore[operator]
        return model

    def plain_model(self) -> Any:
        """Return the model with its head, for images of its own size."""
        return timm_model(self.name, weights=self.weights)

    def model(self) -> Any:
        """Return the model with its head, for images of `size`."""
        model = self.plain_model()
        if self.size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=self.size)
        return model


def check_images(x: Tensor) -> None:
    """Raise ValueError unless `x` holds images uint8 (B, C, H, W)."""
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ValueError(f"this extractor takes images uint8 (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")


def _scaled(x: Tensor) -> Tensor:
    """Return images in the range of a classifier, x / 127.5 - 1."""
    check_images(x)
    return x.to(torch.float32) / 127.5 - 1
