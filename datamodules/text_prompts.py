"""Datamodules of typed prompts, for text-to-image and text-to-motion models that are only sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.no_data import NoData
from datamodules.prompts import PromptFile
from lightning_guide.objectives.humanml3d import joint_positions, read_moments
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.mdm import FRAMES
from lightning_guide.pretrained.prompts import CachedPrompts, Encoders, read_prompts
from lightning_guide.pretrained.text_encoders import TextEncoders
from lightning_guide.pretrained.text_vectors import TextVectors
from lightning_guide.utils.devices import choose_device, to_device

__all__ = ["MotionPrompts", "Prompts", "TypedPrompts"]


class TypedPrompts(NoData):
    """Base of prompts as texts, encoded by `encoders`; otherwise as `NoData`.

    Process 0 of each machine encodes those that `cache` does not hold, and drops the encoders before sampling begins.
    Sample i has prompt i modulo their number (`labels: balanced`).
    """

    def __init__(
        self, data_shape: Sequence[int], prompts: list[str] | str, encoders: Encoders, *, cache: str | None
    ) -> None:
        """Take texts, or a text file with one a line, or the npy or npz file of their embeddings.

        Raises:
            ValueError: if there is no prompt.
        """
        super().__init__(data_shape)
        self._encoders = encoders
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


class Prompts(TypedPrompts):
    """Prompts for a published text-to-image model, encoded by its text encoders (`TypedPrompts`).

    Shape and autoencoder are those of the model, unless others are given.
    """

    def __init__(
        self,
        prompts: list[str] | str,
        source: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
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
            variant: files such as "fp16" of the encoders.
            dtype: precision in which the encoders compute.
            device: where they compute; None: a GPU if available.
            cache: folder of the embeddings, one file each; default: as of `CachedPrompts`.
            data_shape: shape of one x; default: that of the model.
            vae: decodes latents to images; default: that of the model.

        Raises:
            ValueError: if there is no prompt, or the source is no such model.
        """
        named: dict[str, Any] = {"revision": revision, "variant": variant}
        folder = DiffusersFolder(source, **named)
        encoders = TextEncoders(source, **named, dtype=dtype, device=str(choose_device(device)))
        super().__init__(folder.data_shape if data_shape is None else data_shape, prompts, encoders, cache=cache)
        self.space = folder.latent_space(vae)


class MotionPrompts(TypedPrompts):
    """Prompts for MDM, encoded by CLIP as one vector each; samples decode to joints (joints, 3, frames) in meters."""

    def __init__(
        self,
        prompts: list[str] | str,
        mean: str,
        std: str,
        *,
        frames: int = FRAMES,
        clip: str = "ViT-B-32",
        weights: str = "openai",
        device: str | None = None,
        cache: str | None = None,
    ) -> None:
        """Describe the samples.

        Args:
            prompts: texts, or a text file with one a line, or the npy or npz file of their embeddings.
            mean: npy file of the means of the features, by which the data of the model were normalized.
            std: npy file of their standard deviations.
            frames: length of a motion; 20 are a second.
            clip: model of open_clip whose text encoder the model reads; MDM: ViT-B-32.
            weights: its weights, a tag of open_clip or a file.
            device: where it computes; None: a GPU if available.
            cache: folder of the embeddings, one file each; default: as of `CachedPrompts`.

        Raises:
            ValueError: if there is no prompt, or a file is not of this kind.
        """
        self.moments = read_moments(mean, std)
        encoders = TextVectors(clip, weights, device=str(choose_device(device)))
        super().__init__((len(self.moments[0]), frames), prompts, encoders, cache=cache)

    def decode(self, x: Tensor) -> Tensor:
        """Return the joints (B, joints, 3, frames) in meters of normalized features, float32."""
        mean, std = (to_device(each.to(torch.float32), x.device) for each in self.moments)
        return joint_positions(torch.addcmul(mean, std, x.float()))
