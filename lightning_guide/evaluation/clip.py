"""CLIP: features of pictures, and how well pictures agree with the words for their class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import FeatureExtractor, check_pictures
from lightning_guide.evaluation.metric import SampleMetric
from lightning_guide.foreign.library_models import clip_model

__all__ = ["ClipFeatures", "ClipScore"]


class ClipFeatures(FeatureExtractor):
    """Image embeddings of an open_clip model, of pictures resized and normalised as the model expects.

    The whole picture is resized, with antialiasing, and not cropped; one channel is repeated three times. The model
    is read at first use. Radford et al. 2021, https://arxiv.org/abs/2103.00020.
    """

    def __init__(self, name: str = "ViT-L-14-336", weights: str = "openai") -> None:
        """`name` as in `open_clip.list_models()`; `weights` a local file, or a tag of open_clip's downloads."""
        super().__init__()
        self.name, self.weights = name, weights
        self._model: Any = None

    def extract(self, x: Tensor) -> Tensor:
        """Embeddings (B, F) of pictures uint8 (B, 1 or 3, H, W)."""
        check_pictures(x)
        model = self.model(x.device)
        size = model.visual.image_size
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        picture = x.to(torch.float32).expand(-1, 3, -1, -1) / 255
        picture = F.interpolate(picture, size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (
            picture.new_tensor(values)[:, None, None] for values in (model.visual.image_mean, model.visual.image_std)
        )
        return model.encode_image((picture.clamp(0, 1) - mean) / std)

    def words(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings (T, F) of `texts`.

        Raises:
            ValueError: if the weights cannot be found.
        """
        import open_clip

        model = self.model(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return model.encode_text(open_clip.get_tokenizer(self.name)(list(texts)).to(device)).to(torch.float32)

    def model(self, device: torch.device) -> Any:
        """The open_clip model on `device`, frozen.

        Raises:
            ValueError: if open_clip does not know it, or its weights cannot be loaded.
        """
        self.load()
        return self._model.to(device)

    def load(self) -> None:
        """Reads the model.

        Raises:
            ValueError: as `model`.
        """
        if self._model is None:
            self._model = clip_model(self.name, weights=self.weights)

    def title(self) -> str:
        """With the name of the model."""
        return f"{type(self).__name__}({self.name})"


class ClipScore(SampleMetric):
    """`clip_score`: mean of 100 max(cos(picture, words), 0) over the samples with a label.

    Hessel et al. 2021, https://arxiv.org/abs/2104.08718 (there 2.5 in place of 100).
    """

    total: Tensor
    count: Tensor

    def __init__(self, extractor: ClipFeatures, prompts: Sequence[str]) -> None:
        """`prompts`: the words for each class, such as "a photo of an airplane"."""
        super().__init__()
        if not prompts:
            raise ValueError("ClipScore needs the words for each class, got none")
        self.extractor, self.prompts = extractor, list(prompts)
        self.register_buffer("words", torch.empty(0, 0), persistent=False)
        self.add_sum("total")
        self.add_sum("count")

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Embeds the prompts; reads no data.

        Raises:
            ValueError: if the weights cannot be found.
        """
        self.words = F.normalize(self.extractor.words(self.prompts, self.device), dim=1)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Adds pictures `x` uint8 (B, C, H, W) with labels `condition` (B,), -1 or None = no label.

        Raises:
            ValueError: if `prepare` is still to be called, or a label has no prompt.
        """
        self._check_prepared(len(self.words) > 0)
        if condition is None or not bool((condition >= 0).any()):
            return
        labelled = condition >= 0
        labels = condition[labelled].to(self.device)
        if int(labels.max()) >= len(self.prompts):
            raise ValueError(f"ClipScore has {len(self.prompts)} prompts, and none for class {int(labels.max())}")
        pictures = F.normalize(self.extractor(x[labelled].to(self.device)), dim=1)
        self.total += 100 * (pictures * self.words[labels]).sum(1).clamp(min=0).to(torch.float64).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """`clip_score`, from 0 to 100; NaN if no sample had a label."""
        return {"clip_score": self.total / self.count}
