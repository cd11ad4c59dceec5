"""Images with captions, to fine-tune a published text-to-image model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DiffusionData, OnDevice
from datamodules.buckets import AspectBuckets, BucketVisits
from datamodules.encoded_images import EncodedExamples, EncodedImages, PixelExamples
from datamodules.examples import Examples, Slices
from datamodules.image_folder import held_out
from datamodules.latents import DrawnLatents
from datamodules.no_data import NoExamples
from datamodules.storage.captions import CaptionedImage, captioned_images
from datamodules.stream import split_evenly
from lightning_guide.data import Batch
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.prompts import CachedPrompts, cache_folder, read_prompts
from lightning_guide.pretrained.text_encoders import TextEncoders
from lightning_guide.utils.devices import choose_device
from lightning_guide.utils.images import from_pixels, to_pixels

__all__ = ["CaptionedImages"]


class CaptionedImages(DiffusionData):
    """Images with captions in folders, zip archives or tar shards, for a published text-to-image model.

    Captions are rows of `metadata.jsonl` or files beside the images (`captions_of`). Before training, process 0 of each
    machine encodes captions and images that its cache does not hold, by the text encoders and the autoencoder of the
    model, and drops them from memory. Latents are drawn anew at each visit, and x is scaled as the model was trained.

    Images are cropped at the center and scaled to the size of the model, or to the nearest of `buckets`. Held-out
    images, and the real images of metrics, have the size of the model.
    """

    def __init__(
        self,
        train: str | list[str],
        source: str,
        *,
        heldout: float | str | list[str] = 0.02,
        prompts: list[str] | str | None = None,
        size: int | list[int] | None = None,
        buckets: AspectBuckets | None = None,
        revision: str | None = None,
        variant: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | None = None,
        cache: str | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Read the captions.

        Args:
            train: folder, zip archive, or tar shards ("data/train-*.tar") to train on.
            source: folder written by a pipeline of diffusers, or its name on the Hugging Face hub.
            heldout: another such place, or the share of `train` that is held out, at least one image; 0: none.
            prompts: texts, or a text file with one a line, that condition samples; default: the held-out captions.
            size: side, or height and width, of images in pixels; default: that of the model. A model at another size
                needs its `data_shape`, too.
            buckets: sizes for other aspect ratios; None: all images are cropped to one size.
            revision: branch, tag or commit on the hub.
            variant: files such as "fp16" of the encoders.
            dtype: precision in which the text encoders compute.
            device: where encoders compute; None: a GPU if available.
            cache: folder of encoded captions and images; default: `cache_folder()`.
            batch_size: images per process and micro-step.
            num_workers: loader processes.
            seed: seed of the order and of the fresh samples.

        Raises:
            ValueError: for images and captions that do not fit each other (`captions_of`), a source that is no such
                model, or sizes that it cannot have.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        share = isinstance(heldout, float | int)
        if share and not 0 <= heldout < 1:  # type: ignore[operator]
            raise ValueError(f"heldout is {heldout}; expected a place of images, or a share of at least 0 and below 1")
        folder = DiffusersFolder(source, revision=revision, variant=variant)
        self.source, self.space, self.buckets = source, folder.latent_space(), buckets
        channels, *own = folder.data_shape
        sides = (
            [folder.factor * side for side in own] if size is None else [size] * 2 if isinstance(size, int) else size
        )
        step = folder.factor if buckets is None else buckets.step
        if len(sides) != 2 or min(sides) < 1 or any(side % folder.factor for side in (*sides, step)):
            raise ValueError(f"images have the size {sides} and buckets the step {step}; expected multiples of "
                             f"{folder.factor} pixels, of which {source} makes one of x")  # fmt: skip
        self.size = (sides[0], sides[1])
        self.data_shape = (channels, *(side // folder.factor for side in sides))
        self._block = batch_size if buckets is None else buckets.block_of(batch_size)
        found = captioned_images(train)
        self._images = {"train": found, "heldout": []}
        if not share:
            self._images["heldout"] = captioned_images(heldout)  # type: ignore[arg-type]
        elif heldout:
            apart = held_out([str(each) for each in found], float(heldout), place=str(train))  # type: ignore[arg-type]
            for split, here in (("train", False), ("heldout", True)):
                self._images[split] = [each for each in found if (str(each) in apart) == here]
        texts = None if prompts is None else read_prompts(prompts)
        captions = [each.caption for each in self._images["heldout"] or found]
        self.texts = texts or list(dict.fromkeys(captions))[: self.num_prompts]
        chosen = str(choose_device(device))
        self._cache = cache_folder() if cache is None else Path(cache).expanduser()
        self._encoders = TextEncoders(source, revision=revision, variant=variant, dtype=dtype, device=chosen)
        sizes = [self.size] if buckets is None else buckets.sizes(self.size)
        self._encoded = {
            split: EncodedImages(folder, sizes if split == "train" else [self.size], folder=self._cache / "latents",
                                 device=chosen) for split in self._images
        }  # fmt: skip

    def prepare_data(self) -> None:
        """Encode what the cache does not hold: prompts, and captions and images if the trainer trains or validates."""
        if self.trainer is not None and self.trainer.state.fn not in ("fit", "validate"):
            self.prompts()
            return
        self._tokens([*self.texts, *(each.caption for images in self._images.values() for each in images)])
        for split, encoded in self._encoded.items():
            encoded.encode(self._images[split])

    @property
    def token_channels(self) -> int:  # type: ignore[override]
        """C of the embeddings."""
        return int(self._prompts[torch.tensor([0])].shape[2])

    @cached_property
    def _prompts(self) -> CachedPrompts:
        return self._tokens(self.texts)

    def training(self) -> EncodedExamples:
        """Return the training set, of several sizes if there are buckets."""
        return self._train

    def heldout(self) -> Examples:
        """Return the held-out set, of the size of the model."""
        return self._heldout

    @cached_property
    def _train(self) -> EncodedExamples:
        return self._examples("train")

    @cached_property
    def _heldout(self) -> Examples:
        return self._examples("heldout") if self._images["heldout"] else NoExamples()

    def encode(self, raw: Tensor) -> Tensor:
        """Return x, float32, of latents `raw` (B, C, h, w) as scaled by the model, or of pixels in [-1, 1]."""
        return from_pixels(raw) if self.space is None else self.space.encode(raw)

    def decode(self, x: Tensor) -> Tensor:
        """Return images uint8 (B, 3, H, W)."""
        return to_pixels(x) if self.space is None else self.space.decode(x)

    def stored(self, x: Tensor) -> Tensor:
        """Return latents, float32, or images."""
        return self.decode(x) if self.space is None else self.space.latent(x.to(torch.float32))

    def visits(self) -> Dataset[Batch]:
        """Return the training stream, with a fresh sample of latents at each visit; a batch has one size."""
        examples = self.training()
        if self.buckets is None:
            return self._drawn(super().visits(), "latent")
        numbers = {shape: i for i, shape in enumerate(sorted(set(examples.shapes)))}
        buckets = torch.tensor([numbers[shape] for shape in examples.shapes])
        return self._drawn(BucketVisits(examples, buckets, block=self._block, seed=self.seed), "latent")

    def in_order(self, examples: Examples) -> Dataset[Batch]:
        """Return the batches of a finite set in order, each element with one fixed sample of its latents."""
        return self._drawn(super().in_order(examples), "one latent")

    def reference(self, device: torch.device) -> Iterable[Batch]:
        """Return batches of the training images, cropped to the size of the model, the same on every process."""
        pixels = PixelExamples(self.training().images, self.size)
        return OnDevice(self._loader(Slices(pixels), split_evenly(len(pixels), 64), self.num_workers), device)

    def _drawn(self, batches: Dataset[Batch], purpose: str) -> Dataset[Batch]:
        return batches if self.space is None else DrawnLatents(batches, seed=self.seed, purpose=purpose)

    def _examples(self, split: str) -> EncodedExamples:
        """Open a split; encode what is missing."""
        images: Sequence[CaptionedImage] = self._images[split]
        captions = self._tokens([each.caption for each in images])
        return EncodedExamples(self._encoded[split], images, captions, place=str(images[0].files.place))

    def _tokens(self, texts: Sequence[str]) -> CachedPrompts:
        return CachedPrompts(self._encoders, texts, folder=self._cache / "prompts").encode()

    def _images_seen(self) -> int:
        """Images seen by the module, down to a whole block after a change of the batch size."""
        seen = super()._images_seen()
        return seen - seen % self._block if self.buckets is not None else seen
