"""Texts as one vector each, by the text encoder of a CLIP model of open_clip, for models such as MDM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import clip_model
from lightning_guide.runs.sampling import find_device

__all__ = ["TextVectors"]


class TextVectors(FrozenNetwork):
    """CLIP's embeddings of texts in the space that they share with images, not normalized, as tokens (1, C).

    The model is loaded at first use; `free` drops it. Of long texts CLIP reads the first 75 tokens.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        weights: str = "openai",
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        """Choose the model.

        Args:
            model: as in `open_clip.list_models()`.
            weights: a local file or a tag of open_clip.
            device: where it computes.
            batch_size: texts in one call.

        Raises:
            ValueError: if there is no such device.
        """
        self.model, self.weights, self.batch_size = model, weights, batch_size
        self.device = find_device(device)

    @property
    def identity(self) -> str:
        """Hash of the names of model and weights, and of size and time of change if these are a file."""
        path = Path(self.weights).expanduser()
        stats = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ()
        return hashlib.sha256(repr((self.model, self.weights, *stats)).encode()).hexdigest()[:24]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the tokens (P, 1, C) of `prompts`, float32 on the CPU.

        Raises:
            ValueError: if the model or its weights cannot be loaded.
        """
        return torch.cat(list(self.batches(prompts)))

    def batches(self, prompts: Sequence[str]) -> Iterator[Tensor]:
        """Yield the tokens of `encode` batch by batch."""
        import open_clip  # takes seconds

        network, tokenize = self.network(self.device), open_clip.get_tokenizer(self.model)
        for first in range(0, len(prompts), self.batch_size):
            tokens = tokenize(list(prompts[first : first + self.batch_size])).to(self.device)
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield network.encode_text(tokens)[:, None].to("cpu", torch.float32)

    def free(self) -> None:
        """Drop the model from memory."""
        self._held = ()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self) -> nn.Module:
        network: nn.Module = clip_model(self.model, weights=self.weights)
        return network
