"""The command `encode`: encode shards of images, and captions, into shards of latents and embeddings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from webdataset import TarWriter

from datamodules.shard_examples import MASK, TOKENS
from datamodules.shards import shard_paths
from datamodules.storage.downloads import Downloads
from datamodules.storage.image_codec import UndecodableError, decode_image, shrink
from datamodules.storage.shard_classes import shard_classes
from datamodules.storage.shard_writer import is_complete
from datamodules.storage.tar_index import ShardIndex, index_shard
from datamodules.stored_latents import INVENTORY, is_same_shard, shard_identity
from lightning_guide.conditioning import token_mask
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.pretrained.prompts import half_precision
from lightning_guide.pretrained.text_encoders import TextEncoders
from lightning_guide.utils.devices import choose_device
from lightning_guide.utils.files import atomic, remove_temporary
from lightning_guide.utils.resume import ResumableFolder
from lightning_guide.utils.terminal import Progress, counted

__all__ = ["encode"]

CAPTION = "txt"


def encode(
    shards: str | list[str],
    folder: str,
    *,
    vae: VariationalAutoencoder,
    texts: str | None = None,
    size: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    downloads: str | None = None,
) -> None:
    """Encode image shards, one file each under the same name; rerun the same command to resume.

    A record keeps its key, label and embedding; the image is replaced by KEY.npy, float32 (2 C, h, w): mean and
    standard deviation of its latents. Mean and deviation of all latents, which `datamodules.Latents` needs, are printed
    and stored in `latents.json`.

    Args:
        shards: tar files of images, as "data/train-*.tar".
        folder: folder of the shards of latents.
        vae: the autoencoder, as --vae DiffusersVAE --vae.path stabilityai/sd-vae-ft-mse.
        texts: folder of a pipeline of diffusers, or its name on the Hugging Face hub, whose text encoders turn the
            captions, KEY.txt, into KEY.tokens.npy, float16, and KEY.mask.npy; None: no captions.
        size: crop to the central square and shrink to `size` x `size` first; None keeps the size.
        batch_size: number of images in one call of the autoencoder, and of captions in one of the text encoders.
        device: device; None: a GPU if available.
        downloads: folder for copies of shards given by URL, as for `datamodules.Shards`.

    Raises:
        ValueError: for missing or damaged shards, images of different sizes or without captions, latents that are not
            finite, a device that is not available, or a folder encoded with other settings or from other images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1 image in one call of the autoencoder")
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; expected at least 1 pixel, or none to keep the images' size")
    remote = None if downloads is None else Downloads(downloads)
    paths, path = shard_paths(shards, remote), Path(folder) / INVENTORY
    if len({each.name for each in paths}) < len(paths):
        raise ValueError(f"two of the shards {shards!r} have one name; expected different ones for their latents")
    if path.parent.resolve() in {each.parent.resolve() for each in paths}:
        raise ValueError(f"{folder} holds the images themselves; expected another folder for their latents")
    classes = shard_classes(paths)
    chosen = choose_device(device)
    vae = vae.to(chosen).eval()
    encoders = None if texts is None else TextEncoders(texts, device=chosen, batch_size=batch_size)
    settings = {"vae": vae.recipe, "size": size} | ({} if encoders is None else {"texts": encoders.identity})
    inventory = ResumableFolder(path, settings, results="*.tar")
    with inventory.lock():
        remove_temporary(path.parent, "*.tar")
        done = inventory.read().get("shards", {})
        if not done:
            inventory.write({"shards": {}}, durable=False)
        with Progress("encode", len(paths), unit="shards") as bar:
            for source in paths:
                if remote is not None:
                    remote.fetch([source])
                target, entry = path.with_name(source.name), done.get(source.name, {})
                if not is_complete(target, entry or None, extensions=("npy",)):
                    made_of = shard_identity(source)
                    options: dict[str, Any] = {"size": size, "batch_size": batch_size, "device": chosen, "bar": bar}
                    entry = _encode_shard(source, target, vae, encoders, **options)
                    done[source.name] = entry | made_of
                    inventory.write({"shards": done}, durable=False)
                elif not is_same_shard(source, entry):
                    raise ValueError(
                        f"{target} holds latents of other images than {source}, which has the same name or was changed "
                        f"since; expected another folder, or other names, or no {target.name} there to encode it again"
                    )
                else:
                    bar.skip()
        rows = [torch.tensor([entry["sum"], entry["squares"]], dtype=torch.float64) for entry in done.values()]
        mean, square = torch.stack(rows).sum(0) / sum(entry["values"] for entry in done.values())
        std = (square - mean**2).sqrt()
        moments = {"mean": [round(m, 4) for m in mean.tolist()], "std": [round(s, 4) for s in std.tolist()]}
        inventory.write({**moments, "classes": classes, "shards": done}, durable=False)
    records, corrupt = (sum(entry[key] for entry in done.values()) for key in ("records", "corrupt"))
    print(
        f"latents of {counted(records, 'image')} in {counted(len(done), 'shard')}: {folder}/*.tar "
        f"({counted(corrupt, 'corrupt image')} left out); for datamodules.Latents: "
        f"mean: {moments['mean']}, std: {moments['std']}"
    )


def _encode_shard(
    source: Path,
    target: Path,
    vae: VariationalAutoencoder,
    encoders: TextEncoders | None,
    *,
    size: int | None,
    batch_size: int,
    device: torch.device,
    bar: Progress,
) -> dict[str, Any]:
    """Write one shard atomically; return its entry in the inventory."""
    copied = ("cls", TOKENS, MASK) if encoders is None else ("cls", CAPTION)
    index = index_shard(source, num_classes=0, beside=copied)
    keys, corrupt, sums, written = index.keys(), 0, [], 0
    with atomic(target) as temporary, temporary.open("wb") as file, TarWriter(file, mtime=0) as tar:
        for first in range(0, len(index), batch_size):
            count = min(batch_size, len(index) - first)
            readable, images = _images(index, range(first, first + count), size)
            corrupt += count - len(readable)
            bar.add(count / len(index))
            if not readable:
                continue
            with torch.no_grad():
                mean, std = vae.posterior(images.to(device).to(torch.float32) / 255)
            latents = torch.cat([mean, std], dim=1).to("cpu", torch.float32)
            for record, latent in zip(readable, latents, strict=True):
                if not bool(latent.isfinite().all()):
                    raise ValueError(f"the latents of record {keys[record]!r} of {source} are not finite")
            further = [_beside(index, record) for record in readable]
            if encoders is not None:
                _add_tokens(further, encoders, [f"record {keys[record]!r} of {source}" for record in readable])
            for record, latent, beside in zip(readable, latents, further, strict=True):
                tar.write({"__key__": keys[record], "npy": _npy(latent.numpy()), **beside})
            mean, std = mean.double().cpu(), std.double().cpu()
            sums.append(torch.stack([mean.sum((0, 2, 3)), (mean**2 + std**2).sum((0, 2, 3))]))
            written += mean.numel() // mean.shape[1]
        if not sums:
            raise ValueError(f"all {len(index)} images in {source} are corrupt; expected at least one readable one")
    total, squares = torch.stack(sums).sum(0).tolist()
    return {
        "records": len(index) - corrupt, "corrupt": corrupt, "values": written, "sum": total, "squares": squares
    }  # fmt: skip


def _images(index: ShardIndex, records: range, size: int | None) -> tuple[list[int], Tensor]:
    """Return the readable ones of `records`, and their images (B, 3, H, W) uint8."""
    readable: list[int] = []
    images: list[Tensor] = []
    with index.path.open("rb") as file:
        for record in records:
            file.seek(int(index.offsets[record]))
            try:
                image = decode_image(file.read(int(index.sizes[record])))
            except UndecodableError:
                continue
            image = image if size is None else shrink(image, size)
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"record {index.key(record)!r} of {index.path} has {image.shape[1]}x{image.shape[2]} pixels, "
                    f"others {images[0].shape[1]}x{images[0].shape[2]}; set size to crop and shrink them to one"
                )
            readable.append(record)
            images.append(image)
    return readable, torch.stack(images) if images else torch.empty(0)


def _beside(index: ShardIndex, record: int) -> dict[str, bytes]:
    """Return the encoded label and embedding of a record."""
    found = {}
    with index.path.open("rb") as file:
        for name, places in index.beside.items():
            offset, length = places[record].tolist()
            if length >= 0:
                file.seek(offset)
                found[name] = file.read(length)
    return found


def _add_tokens(beside: list[dict[str, bytes]], encoders: TextEncoders, names: list[str]) -> None:
    """Add the embeddings of the captions to the files of records, which are called `names` in errors."""
    captions = []
    for files, name in zip(beside, names, strict=True):
        try:
            captions.append(" ".join(files[CAPTION].decode("utf-8").split()))
        except (KeyError, UnicodeDecodeError):
            raise ValueError(f"{name} has no caption; expected KEY.{CAPTION} in UTF-8 beside each image") from None
    encoded = encoders.encode(captions)
    for files, tokens, mask in zip(beside, half_precision(encoded), token_mask(encoded).numpy(), strict=True):
        files[TOKENS], files[MASK] = _npy(tokens), _npy(mask)


def _npy(x: np.ndarray[Any, Any]) -> bytes:
    """Encode an array as npy."""
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()
