"""CLIP image-text similarity as an energy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_guide.objectives.energy import Energy
from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import clip_input, clip_model
from lightning_guide.utils.images import preprocess_image

__all__ = ["TextMatch"]


class TextMatch(Energy, FrozenNetwork):
    """CLIP energy of images in [-1, 1]: 1 - cos(image, text), or |image - text| of the unnormalized embeddings.

    Universal guidance and the ImageNet experiments of FreeDoM and Shen et al. use the cosine, their face experiments
    the distance. Images are resized, bicubic, and normalized as in the training of the model. Evaluate samples with
    another model than that of the guidance (ViT-L/14 for guidance by ViT-B/16).
    """

    def __init__(
        self,
        prompt: str,
        *,
        model: str = "ViT-B-16",
        weights: str | None = "openai",
        kind: Literal["cosine", "distance"] = "cosine",
    ) -> None:
        """Choose the prompt and the model.

        Args:
            prompt: text.
            model: as in `open_clip.list_models()`.
            weights: a local file or a tag of open_clip; None for random weights.
            kind: "cosine" or "distance".

        Raises:
            ValueError: if `kind` is unknown.
        """
        super().__init__()
        if kind not in ("cosine", "distance"):
            raise ValueError(f"TextMatch takes kind 'cosine' or 'distance', got {kind!r}")
        self.prompt, self.model, self.weights, self.kind = prompt, model, weights, kind
        self._text: Tensor | None = None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of images `x` (B, 1 or 3, H, W), computed in float32.

        Raises:
            ValueError: if the model or its weights cannot be found.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._loss(x.to(torch.float32)).to(x.dtype)

    def _loss(self, x: Tensor) -> Tensor:
        network = self.network(x)
        image = network.encode_image(preprocess_image((x + 1) / 2, **clip_input(network)))
        text = self._embed_text(x.device)
        if self.kind == "distance":
            distance: Tensor = (image - text).norm(dim=1)
            return distance
        return 1 - torch.cosine_similarity(image, text, dim=1)

    @torch.no_grad()
    def _embed_text(self, device: torch.device) -> Tensor:
        if self._text is None:
            import open_clip

            tokens = open_clip.get_tokenizer(self.model)([self.prompt]).to(device)
            self._text = self.network().encode_text(tokens)
        self._text = self._text.to(device)
        return self._text

    def _load(self) -> nn.Module:
        network: nn.Module = clip_model(self.model, weights=self.weights)
        return network
