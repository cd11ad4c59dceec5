"""Data of a run that is only sampled from, such as an imported network: shapes and pixels, no examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datamodules.base import DiffusionData
from datamodules.examples import Examples
from datamodules.latent_space import IMAGENET_MEAN, IMAGENET_STD, LatentSpace
from lightning_guide.data import Batch
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder

__all__ = ["NoData"]


class _Nothing(Examples):
    """No examples."""

    labeled, in_memory = False, True

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise IndexError(index)

    def take(self, indices: Tensor) -> Batch:
        raise IndexError(indices)


class NoData(DiffusionData):
    """The shape of one x and what samples look like: (1 or 3, H, W) are pictures in bytes, else x stays as it is.

    Latents become pictures by `vae`. A model that reads embeddings is told those of `prompt_file`.
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
        """Says what there is.

        Args:
            data_shape: of one x.
            num_classes: number of labels, 0 for none.
            token_channels: C of the embeddings that the model reads, 0 for none.
            prompt_file: npy or npz of embeddings, see `read_prompts`.
            vae: makes pictures of latents.
            mean: of these latents, for each channel; default: EDM2's.
            std: likewise.

        Raises:
            ValueError: if mean and std do not fit the latents of `vae`.
        """
        super().__init__(batch_size=1)
        self.data_shape, self.num_classes = tuple(data_shape), num_classes
        self.token_channels, self.prompt_file = token_channels, prompt_file
        self.space = None if vae is None else LatentSpace(vae, mean, std)
        if vae is not None and len(mean) != self.data_shape[0]:
            raise ValueError(f"the latents have {self.data_shape[0]} channels; mean and std have {len(mean)}")
        self._pictures = len(self.data_shape) == 3 and self.data_shape[0] in (1, 3)

    def training(self) -> Examples:
        """Never possible.

        Raises:
            ValueError: always.
        """
        raise ValueError("NoData has no examples: expected another datamodule to train or compare with")

    def reference(self, device: torch.device) -> Iterator[Batch]:
        """Nothing to read: metrics that look at no data, those with stored `statistics`, need nothing else.

        Raises:
            ValueError: as soon as an example is asked for.
        """
        yield from super().reference(device)

    def heldout(self) -> Examples:
        """No examples, so that a validation consists of its sampling loops."""
        return _Nothing()

    def encode(self, raw: Tensor) -> Tensor:
        """x = raw / 127.5 - 1 of pictures, float32; anything else as it is."""
        return raw.float() / 127.5 - 1 if self._pictures else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        """The inverse: uint8 pictures, those of latents too, or x itself in float32."""
        if self.space is not None:
            return self.space.decode(x)
        x = x.float()
        return (x * 127.5 + 127.5).round().clip(0, 255).to(torch.uint8) if self._pictures else x
