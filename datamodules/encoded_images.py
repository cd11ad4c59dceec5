"""Images with captions for a published model, each encoded once: latents or pixels of its size, and tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.buckets import Fitted, Size, fit_image
from datamodules.examples import Examples
from datamodules.storage.captions import CaptionedImage
from datamodules.storage.image_codec import UndecodableError, decode_image
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.diffusers_family import add_sizes
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.loading import files_of
from lightning_guide.pretrained.prompts import CachedPrompts
from lightning_guide.utils.files import STALE, atomic, remove_temporary
from lightning_guide.utils.terminal import Progress

__all__ = ["EncodedExamples", "EncodedImages", "PixelExamples"]


class EncodedImages:
    """Images of some sizes, encoded at most once on a machine by the autoencoder of a folder of diffusers.

    A file holds `x`, float32 (2 C, h, w), mean and standard deviation of the latents, or uint8 (3, H, W) for models of
    pixels, and `sizes` (`Fitted`). It lies in a folder named after the autoencoder (names, sizes and times of change of
    its files) and the sizes, and is named after place, name, size and time of change of the image or its archive.
    """

    def __init__(self, model: DiffusersFolder, sizes: Sequence[Size], *, folder: Path, device: str) -> None:
        """Choose the sizes (height, width) in pixels; nothing is encoded or read before it is needed."""
        self.model, self.sizes, self.device = model, list(sizes), device
        made = files_of(model.folder, ["vae"]) if model.has_vae else "pixels"
        self.folder = folder / hashlib.sha256(json.dumps([made, self.sizes]).encode()).hexdigest()[:24]

    def path(self, image: CaptionedImage) -> Path:
        """Return the file of an image."""
        named = [str(image.files.place.resolve()), image.name, image.files.state([image.name])]
        return self.folder / f"{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]}.safetensors"

    def encode(self, images: Sequence[CaptionedImage]) -> dict[str, str]:
        """Encode the images that have no file; return the names of those that cannot be decoded, with the reasons.

        Raises:
            ValueError: if the autoencoder cannot be loaded, or latents are not finite.
            OSError: naming the file, if one cannot be written.
        """
        corrupt, missing = {}, [each for each in images if not self.path(each).is_file()]
        space = self.model.latent_space() if missing else None  # its autoencoder is dropped from memory afterwards
        remove_temporary(self.folder, "*.safetensors", seconds=STALE)  # of killed processes
        with Progress("encode", len(missing), unit="images") as bar:
            for image in missing:
                bar.add(1)
                try:
                    fitted = fit_image(decode_image(image.files.read(image.name)), self.sizes)
                except UndecodableError as error:
                    corrupt[str(image)] = str(error)
                    continue
                x = fitted.x if space is None else self._latents(fitted, space.vae, str(image))
                with atomic(self.path(image), durable=False) as temporary:
                    save_file({"x": x, "sizes": torch.tensor(fitted.sizes)}, temporary)
        return corrupt

    def _latents(self, fitted: Fitted, vae: VariationalAutoencoder | None, name: str) -> Tensor:
        """Return mean and standard deviation (2 C, h, w)."""
        assert vae is not None
        with torch.no_grad():
            posterior = vae.posterior(fitted.x[None].to(self.device, torch.float32) / 255)
        x = torch.cat([*posterior.mean, *posterior.std]).to("cpu", torch.float32).contiguous()
        if not bool(x.isfinite().all()):
            raise ValueError(f"the latents of {name} are not finite")
        return x


class EncodedExamples(Examples):
    """Encoded images, conditioned on the tokens (L, C) of their captions, with sizes for models that read them.

    Attributes:
        images: those that could be decoded.
        shapes: shape of each x.
    """

    labeled = True

    def __init__(
        self, encoded: EncodedImages, images: Sequence[CaptionedImage], captions: CachedPrompts, *, place: str
    ) -> None:
        """Take images, encoding those that are not, and their `captions`, which are encoded; `place` for messages.

        Images that cannot be decoded are left out, and those that were enlarged are counted, in warnings.

        Raises:
            ValueError: as `EncodedImages.encode`, if no image can be decoded, or a file is damaged.
        """
        corrupt = encoded.encode(images)
        kept = [i for i, each in enumerate(images) if str(each) not in corrupt]
        reason = next((f"{name} ({why})" for name, why in corrupt.items()), "")
        if not kept:
            raise ValueError(f"none of the {len(images)} images in {place} can be decoded; first: {reason}")
        if corrupt:
            rank_zero_warn(f"{len(corrupt)} of {len(images)} images are corrupt and left out; first: {reason}")
        self.images, self.captions, self.numbers = [images[i] for i in kept], captions, torch.tensor(kept)
        self.reads_sizes = encoded.model.reads_sizes
        self.paths = [encoded.path(each) for each in self.images]
        self.shapes: list[tuple[int, ...]] = []
        small = []
        for image, path in zip(self.images, self.paths, strict=True):
            try:
                with safe_open(path, "pt") as file:
                    self.shapes.append(tuple(file.get_slice("x").get_shape()))
                    sizes = file.get_tensor("sizes").tolist()
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}, the encoded {image}, is damaged ({error}); delete it") from None
            if Fitted(torch.empty(0), tuple(sizes)).enlarged:
                small.append(f"{image} ({sizes[0]}x{sizes[1]})")
        if small:
            rank_zero_warn(
                f"{len(small)} of {len(images)} images in {place} are smaller than the model's and were enlarged; "
                f"first: {small[0]}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        stored = load_file(self.paths[index])
        tokens = self.captions[self.numbers[index : index + 1]][0]
        return stored["x"], add_sizes(tokens, stored["sizes"]) if self.reads_sizes else tokens


class PixelExamples(Examples):
    """The images themselves, uint8 (3, H, W) of one size, for metrics."""

    labeled = False

    def __init__(self, images: Sequence[CaptionedImage], size: Size) -> None:
        """Take images that can be decoded."""
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return fit_image(decode_image(image.files.read(image.name)), [self.size]).x, -1
