"""The command `convert`: write class folders, archives or torchvision datasets to WebDataset shards."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor

from datamodules.storage.image_codec import SUFFIXES, UndecodableError, decode_image
from datamodules.storage.image_files import image_files
from datamodules.storage.labels import labels_of
from datamodules.storage.shard_classes import other_classes
from datamodules.storage.shard_writer import write_shards
from lightning_guide.utils.terminal import counted

__all__ = ["ImageArchive", "convert", "torchvision_dataset"]


class ImageArchive(Sequence[tuple[Tensor, int]]):
    """Images in a folder or an archive as (uint8 (3, H, W), label), with labels as in `labels_of`."""

    def __init__(self, place: str | Path, classes: Sequence[str] | None = None) -> None:
        """List the place; `classes` gives the numbering of class names.

        Raises:
            ValueError: if the place does not exist, an image in it has no label, a class folder has no images, or it
                has other classes.
        """
        self.files = image_files(place)
        found = labels_of(self.files, classes)
        self.names, self.labels, self.classes = found.images, found.labels, found.classes
        if not self.names:
            raise ValueError(f"{place} holds no images; expected files ending in {', '.join(SUFFIXES)}")
        for name in self.names:
            if name not in self.labels:
                raise ValueError(
                    f"{name} in {place} has no label; expected a class folder, {place}/CLASS/, or a row of dataset.json"
                )
        if found.empty and classes is None:
            raise ValueError(
                f"the class folder {found.empty[0]} of {place} holds no images; expected {', '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def state(self) -> str:
        """Return a hash that changes when an image or its label does."""
        labels = [self.labels[name] for name in self.names]
        return f"{self.files.state(self.names)}-{hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:8]}"

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""
        return f"{self.names[index]} in {self.files.place}"

    def __getitem__(self, index: Any) -> Any:
        name = self.names[index]
        try:
            return decode_image(self.files.read(name)), self.labels[name]
        except UndecodableError as error:
            raise UndecodableError(f"{self.name(index)} ({error})") from None


def torchvision_dataset(name: str, root: str, *, split: str, download: bool = False) -> Any:
    """Open the dataset `torchvision.datasets.NAME` in the folder `root`.

    `split` is passed as its argument `split` or `train=split == "train"`, depending on the dataset.

    Raises:
        ValueError: if the dataset does not exist or cannot be opened.
    """
    cls = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(cls):
        names = [other for other in torchvision.datasets.__all__ if other[:1] == name[:1]]
        raise ValueError(f"torchvision has no dataset {name!r}; expected one like {', '.join(names) or 'CIFAR10'}")
    accepted = inspect.signature(cls).parameters
    if "train" in accepted and split not in ("train", "test"):
        raise ValueError(f"torchvision.datasets.{name} has the splits train and test; got {split!r}")
    arguments: dict[str, Any] = {"train": split == "train"} if "train" in accepted else {}
    arguments |= {"split": split} if "split" in accepted else {}
    arguments |= {"download": download} if "download" in accepted else {}
    build: Callable[..., Any] = cls
    try:
        return build(root, **arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"torchvision.datasets.{name} cannot be opened in {root} with {arguments}: {error}; expected its files "
            "there, or `--download true` to fetch them"
        ) from None


def convert(
    source: str,
    folder: str,
    *,
    name: str = "train",
    size: int | None = None,
    records_per_shard: int = 5000,
    shuffle_seed: int | None = 0,
    quality: int | None = None,
    download: bool = False,
) -> None:
    """Write a folder, an archive or a torchvision dataset to WebDataset shards; rerun the same command to resume.

    Args:
        source: a folder, a zip archive or a tar with one folder of images for each class or a `dataset.json`, or
            `torchvision:CIFAR10:ROOT`.
        folder: folder of the shards. If it holds shards of another name already, their classes give the numbering.
        name: name of the shards; for torchvision also the split (train, test, ...).
        size: crop to the central square and shrink to `size` x `size`; None keeps the size.
        records_per_shard: number of images in one shard.
        shuffle_seed: seed of the order in which images are written; None keeps the order of the source.
        quality: JPEG quality, 1 to 100; None writes PNG, which is lossless.
        download: let torchvision download the dataset.

    Raises:
        ValueError: if the source cannot be read, or the folder holds another conversion under this name.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "torchvision":
        dataset, _, root = rest.partition(":")
        if not root:
            raise ValueError(f"the source is {source!r}; expected torchvision:NAME:ROOT, as torchvision:CIFAR10:data")
        images: Any = torchvision_dataset(dataset, os.path.expanduser(root), split=name, download=download)
    else:
        images = ImageArchive(source, other_classes(Path(folder), name))
    inventory = write_shards(
        images,
        folder,
        name=name,
        size=size,
        records_per_shard=records_per_shard,
        shuffle_seed=shuffle_seed,
        quality=quality,
    )
    classes = counted(len(inventory["classes"]), "class", "classes")
    corrupt = counted(len(inventory["corrupt"]), "corrupt image")
    print(
        f"{counted(inventory['records'], 'image')} of {classes} in {counted(len(inventory['shards']), 'shard')}: "
        f"{Path(folder) / name}-*.tar ({corrupt} left out, listed in {name}.json)"
    )
