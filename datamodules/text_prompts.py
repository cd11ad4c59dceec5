"""Datamodule of typed prompts, for text-to-image models that are only sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch

from datamodules.no_data import NoData
from datamodules.prompts import PromptFile
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.prompts import CachedPrompts, read_prompts
from lightning_guide.pretrained.text_encoders import TextEncoders

__all__ = ["Prompts"]


class Prompts(NoData):
    """Prompts as texts, encoded by the text encoders of a published model; otherwise as `NoData`.

    Process 0 of each machine encodes those that `cache` does not hold, and drops the encoders before sampling begins.
    Sample i has prompt i modulo their number (`labels: balanced`). Shape and autoencoder are those of the model, unless
    others are given.
    """

    def __init__(
        self,
        prompts: list[str] | str,
        source: str,
        *,
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | None = None,
        cache: str | None = None,
        data_shape: Sequence[int] | None = None,
        vae: VariationalAutoencoder | None = None,
    ) -> None:
        """Describe the samples.

        Args:
            prompts: texts, or a text file with one a line, or the npy or npz file of their embeddings.
            source: folder written by a pipeline of diffusers, or its name on the Hugging Face hub.
            revision: branch, tag or commit on the hub.
            dtype: precision in which the encoders compute.
            device: where they compute; None: a GPU if available.
            cache: folder of the embeddings, one file each; default: as of `CachedPrompts`.
            data_shape: shape of one x; default: that of the model.
            vae: decodes latents to images; default: that of the model.

        Raises:
            ValueError: if there is no prompt, or the source is no such model.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder = DiffusersFolder(source, revision=revision)
        super().__init__(folder.data_shape if data_shape is None else data_shape)
        self.space = folder.latent_space(vae)
        self._encoders = TextEncoders(folder.folder, dtype=dtype, device=device)
        embedded = isinstance(prompts, str) and prompts.endswith((".npy", ".npz"))
        self.texts, self.cache = prompts if embedded else read_prompts(prompts), cache

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
        return CachedPrompts(self._encoders, self.texts, folder=self.cache).encode()
