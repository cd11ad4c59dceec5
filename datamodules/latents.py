"""Latents in shards: mean and standard deviation are stored, a fresh sample is drawn at each visit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DiffusionData
from datamodules.examples import Examples
from datamodules.shard_examples import ShardExamples, token_shape
from datamodules.shards import shard_paths
from datamodules.storage.downloads import Downloads
from datamodules.storage.shard_classes import recorded_classes
from datamodules.stored_latents import LatentDecoder, Spread, check_compatibility
from lightning_guide.data import Batch
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.latent_space import IMAGENET_MEAN, IMAGENET_STD, LatentSpace
from lightning_guide.seeds import SampleSeeds

__all__ = ["DrawnLatents", "Latents"]


class DrawnLatents(Dataset[Batch]):
    """Samples z = mean + std n of batches of means and deviations, n a function of (seed, purpose, position)."""

    def __init__(self, batches: Dataset[Batch], *, seed: int, purpose: str) -> None:
        """Wrap `batches`, which map a range of positions to x (B, 2 C, h, w)."""
        self.batches, self.seed, self.purpose = batches, seed, purpose

    def __getitem__(self, positions: range) -> Batch:
        batch = self.batches[positions]
        mean, std = batch.x.to(torch.float32).chunk(2, dim=1)
        n = SampleSeeds(self.seed, positions).normal(self.purpose, mean.shape[1:])
        return batch._replace(x=mean + std * n)


class Latents(DiffusionData):
    """Latents written by `lightning-guide encode`: `KEY.npy`, float32 (2 C, h, w), mean above std, and labels.

    The denoiser's input is x = (z - mean) / (2 std), channel by channel, with a fresh z of the stored Gaussian at each
    visit: sigma_data = 0.5. Samples are decoded to images by `vae` for grids and metrics; without it they stay latents.
    """

    def __init__(
        self,
        train: str | list[str],
        heldout: str | list[str],
        *,
        vae: VariationalAutoencoder | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        spread: Spread = "std",
        num_classes: int = 0,
        token_channels: int = 0,
        token_length: int = 77,
        prompt_file: str | None = None,
        images: DiffusionData | None = None,
        decode_batch: int = 16,
        cache: bool | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        downloads: str | None = None,
    ) -> None:
        """Find the shards; warn if their inventory names another autoencoder, mean or standard deviation.

        Args:
            train: shards to train on, as for `Shards`.
            heldout: shards of the held-out set.
            vae: decodes samples for grids and metrics.
            mean: of the latents, one number for each channel; default: EDM2's, of ImageNet under sd-vae-ft-mse.
            std: standard deviations, likewise. `lightning-guide encode` prints those of new data.
            spread: what the shards hold below the means: "std", standard deviations as `encode` writes them, or
                "log_variance", as other programs store the moments of an autoencoder.
            num_classes: number of classes; 0 ignores the labels.
            token_channels: C of the embeddings used as conditions; 0 ignores embeddings.
            token_length: L, the maximum number of tokens of an embedding.
            prompt_file: embeddings that condition samples, npy or npz; default: those of held-out latents.
            images: the real images that metrics compare with; None: the decoded latents, which lack the details that
                the autoencoder loses.
            decode_batch: number of latents decoded in one call.
            cache: keep all latents in memory; None: only below 1 GiB.
            batch_size: latents per process and micro-step.
            num_workers: loader processes.
            seed: seed of the order and of the fresh samples.
            downloads: folder for copies of shards given by URL, as for `Shards`; the first one is fetched immediately.

        Raises:
            ValueError: if shards are missing, do not hold means and deviations, or do not match `mean` and `std`.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self._downloads = None if downloads is None else Downloads(downloads)
        self._paths = {"train": shard_paths(train, self._downloads), "heldout": shard_paths(heldout, self._downloads)}
        self.num_classes, self.token_channels, self.token_length = num_classes, token_channels, token_length
        self.class_names = recorded_classes(self._paths["train"], self._paths["heldout"], num_classes)
        self._token_shape = token_shape(num_classes, token_channels, token_length)
        self.prompt_file, self.images, self.cache = prompt_file, images, cache
        self._decode = LatentDecoder(spread)
        self.space = LatentSpace(vae, mean, std, decode_batch=decode_batch)
        stored = self._records("train", first=True).shape
        assert stored is not None
        if len(stored) != 3 or stored[0] % 2 or len(mean) != stored[0] // 2:
            raise ValueError(
                f"the latents in {self._paths['train'][0]} have shape {tuple(stored)}; expected (2 C, h, w), C means "
                f"above C deviations, and as many numbers in mean ({len(mean)}) and std ({len(std)})"
            )
        self.data_shape = (stored[0] // 2, *stored[1:])
        for folder in sorted({path.parent for paths in self._paths.values() for path in paths}):
            for warning in check_compatibility(folder, vae, mean, std):
                rank_zero_warn(warning)

    def encode(self, raw: Tensor) -> Tensor:
        """Return x = (z - mean) / (2 std), float32, for latents `raw` z (B, C, h, w)."""
        return self.space.encode(raw)

    def decode(self, x: Tensor) -> Tensor:
        """Return images uint8 (B, 3, H, W), clipped; without an autoencoder the latents z = 2 std x + mean, float32."""
        return self.space.decode(x)

    def stored(self, x: Tensor) -> Tensor:
        """Return the latents z = 2 std x + mean, float32."""
        return self.space.latent(x.to(torch.float32))

    def visits(self) -> Dataset[Batch]:
        """Return the training stream, with a fresh sample at each visit."""
        return DrawnLatents(super().visits(), seed=self.seed, purpose="latent")

    def in_order(self, examples: Examples) -> Dataset[Batch]:
        """Return the batches of a finite set in order, each element with one fixed sample."""
        return DrawnLatents(super().in_order(examples), seed=self.seed, purpose="one latent")

    def reference(self, device: torch.device) -> Iterable[Batch]:
        """Return batches of all real images, or of the decoded training latents, identical on every process."""
        return _Decoded(self, super().reference(device)) if self.images is None else self.images.reference(device)

    def training(self) -> Examples:
        """Return means and deviations of the training set."""
        return self._train

    def heldout(self) -> Examples:
        """Return means and deviations of the held-out set."""
        return self._heldout

    @cached_property
    def _train(self) -> Examples:
        return self._examples("train")

    @cached_property
    def _heldout(self) -> Examples:
        return self._examples("heldout")

    def _examples(self, split: str) -> Examples:
        """Open a split, and read it if it is to be kept in memory."""
        records = self._records(split)
        expected = (2 * self.data_shape[0], *self.data_shape[1:])
        if records.shape != expected:
            raise ValueError(f"the {split} latents in {records.place} have shape {records.shape}; expected {expected}")
        cache = records.nbytes() < 2**30 if self.cache is None else self.cache
        return records.decoded() if cache else records

    def _records(self, split: str, first: bool = False) -> ShardExamples:
        """Return the shards of a split, or the first of them without conditions."""
        paths = self._paths[split][:1] if first else self._paths[split]
        if self._downloads is not None:
            self._downloads.fetch(paths)
        return ShardExamples(
            paths,
            size=None,
            num_classes=0 if first else self.num_classes,
            token_shape=None if first else self._token_shape,
            extensions=("npy",),
            decode=self._decode,
        )


class _Decoded:
    """Batches of latents decoded to images; can be iterated more than once."""

    def __init__(self, data: Latents, batches: Iterable[Batch]) -> None:
        self.data, self.batches = data, batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield batch._replace(x=self.data.decode(self.data.encode(batch.x)))
