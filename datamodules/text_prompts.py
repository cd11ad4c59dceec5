"""Datamodule of typed prompts, for text-to-image models that are only sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch

from datamodules.no_data import NoData
from datamodules.prompts import PromptFile
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.latent_space import IMAGENET_MEAN, IMAGENET_STD
from lightning_guide.pretrained.prompts import CACHE, CachedPrompts, read_prompts
from lightning_guide.pretrained.text_encoders import TextEncoders

__all__ = ["Prompts"]


class Prompts(NoData):
    """Prompts as texts, encoded by the text encoders of a published model; otherwise as `NoData`.

    Process 0 of each machine encodes those that `cache` does not hold, and drops the encoders before sampling begins.
    Sample i has prompt i modulo their number (`labels: balanced`).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        prompts: list[str] | str,
        source: str | None = None,
        *,
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | None = None,
        cache: str = CACHE,
        vae: VariationalAutoencoder | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Describe the samples.

        Args:
            data_shape: shape of one x.
            prompts: texts, or a text file with one a line, or the npy or npz file of their embeddings.
            source: folder written by a pipeline of diffusers, or its name on the Hugging Face hub; not for embeddings.
            revision: branch, tag or commit on the hub.
            dtype: precision in which the encoders compute.
            device: where they compute; None: a GPU if available.
            cache: folder of the embeddings, one file each.
            vae: decodes latents to images.
            mean: means of these latents for each channel; default: EDM2's.
            std: standard deviations, likewise.

        Raises:
            ValueError: if there is no prompt, or the source is missing or not one of embeddings.
        """
        super().__init__(data_shape, vae=vae, mean=mean, std=std)
        self._embedded = isinstance(prompts, str) and prompts.endswith((".npy", ".npz"))
        if (source is None) != self._embedded:
            expected = "none for embeddings" if self._embedded else "the model whose text encoders read the prompts"
            raise ValueError(f"Prompts: source is {source} for the prompts {prompts!r:.100}; expected {expected}")
        self.texts = prompts if self._embedded else read_prompts(prompts)
        self.source, self.revision, self.dtype, self.cache = source, revision, dtype, cache
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def prepare_data(self) -> None:
        """Encode the prompts that the cache does not hold."""
        self.prompts()

    @property
    def token_channels(self) -> int:  # type: ignore[override]
        """C of the embeddings."""
        prompts = self._prompts
        return int(prompts.shape[2] if isinstance(prompts, PromptFile) else prompts[torch.tensor([0])].shape[2])

    @cached_property
    def _prompts(self) -> PromptFile | CachedPrompts:
        if isinstance(self.texts, str):
            return PromptFile(self.texts)
        assert self.source is not None
        encoders = TextEncoders(self.source, revision=self.revision, dtype=self.dtype, device=self.device)
        return CachedPrompts(encoders, self.texts, folder=self.cache).encode()
