"""Datamodule without examples, for models that are only sampled from, such as imported networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datamodules.base import DiffusionData
from datamodules.examples import Examples
from lightning_guide.data import Batch
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.latent_space import IMAGENET_MEAN, IMAGENET_STD, LatentSpace
from lightning_guide.utils.images import from_pixels, to_pixels

__all__ = ["NoData", "NoExamples"]


class NoExamples(Examples):
    """No examples."""

    labeled, in_memory = False, True

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise IndexError(index)

    def take(self, indices: Tensor) -> Batch:
        raise IndexError(indices)


class NoData(DiffusionData):
    """Shape and decoding of samples, no examples: x (1 or 3, H, W) decodes to uint8 images, any other x to itself.

    Latents are decoded to images by `vae`. A model conditioned on embeddings receives those of `prompt_file`.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 0,
        *,
        token_channels: int = 0,
        prompt_file: str | None = None,
        vae: VariationalAutoencoder | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Describe the samples.

        Args:
            data_shape: shape of one x.
            num_classes: number of labels, 0 for none.
            token_channels: C of the embeddings that condition the model, 0 for none.
            prompt_file: npy or npz of embeddings, see `PromptFile`.
            vae: decodes latents to images.
            mean: means of these latents for each channel; default: EDM2's.
            std: standard deviations, likewise.

        Raises:
            ValueError: if `mean` and `std` do not match the latents of `vae`.
        """
        super().__init__(batch_size=1)
        self.data_shape, self.num_classes = tuple(data_shape), num_classes
        self.prompt_file = prompt_file
        if token_channels:
            self.token_channels = token_channels
        self.space = None if vae is None else LatentSpace(vae, mean, std)
        if vae is not None and len(mean) != self.data_shape[0]:
            raise ValueError(f"the latents have {self.data_shape[0]} channels; mean and std have {len(mean)}")
        self._is_image = len(self.data_shape) == 3 and self.data_shape[0] in (1, 3)

    def training(self) -> Examples:
        """Raise an error: there are no examples.

        Raises:
            ValueError: always.
        """
        raise ValueError("NoData has no examples: expected another datamodule to train or compare with")

    def reference(self, device: torch.device) -> Iterator[Batch]:
        """Return an iterator that fails when read; metrics with stored `statistics` never read it.

        Raises:
            ValueError: when the first batch is requested.
        """
        yield from super().reference(device)

    def heldout(self) -> Examples:
        """Return an empty set: a validation then consists of its sampling loops."""
        return NoExamples()

    def stored(self, x: Tensor) -> Tensor:
        """Return the latents z of samples x with a `vae`, float32; else as decoded."""
        return self.decode(x) if self.space is None else self.space.latent(x.to(torch.float32))

    def encode(self, raw: Tensor) -> Tensor:
        """Return x = raw / 127.5 - 1 of images, x of latents z with a `vae`, float32; other data unchanged."""
        if self.space is not None:
            return self.space.encode(raw)
        return from_pixels(raw) if self._is_image else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        """Return uint8 images, decoded by `vae` for latents, or x itself in float32."""
        if self.space is not None:
            return self.space.decode(x)
        return to_pixels(x) if self._is_image else x.float()
