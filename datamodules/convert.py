"""The command `convert`: labelled pictures become WebDataset shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.shard_writer import write_shards
from datamodules.sources import ClassFolder, PictureArchive, torchvision_dataset

__all__ = ["convert"]


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
    """Turns a folder, an archive or a torchvision dataset into WebDataset shards; run again, it goes on where it was.

    Args:
        source: a folder with one folder of pictures for each class, a zip archive of such folders or of pictures with a
            `dataset.json`, or `torchvision:CIFAR10:ROOT`.
        folder: where the shards go.
        name: what the shards are called; for torchvision also the split that is read (train, test, ...).
        size: crop to the central square and shrink to `size` x `size`; None keeps the pictures as they are.
        records_per_shard: pictures in one shard.
        shuffle_seed: seed of the order in which pictures are written; None keeps the order of the source.
        quality: JPEG quality, 1 to 100; None writes PNG, which loses nothing.
        download: let torchvision download the dataset.

    Raises:
        ValueError: if the source cannot be read, or the folder holds another conversion under this name.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "torchvision":
        dataset, _, root = rest.partition(":")
        if not root:
            raise ValueError(f"the source is {source!r}; expected torchvision:NAME:ROOT, as torchvision:CIFAR10:data")
        pictures: Any = torchvision_dataset(dataset, root, split=name, download=download)
    else:
        pictures = PictureArchive(source) if Path(source).is_file() else ClassFolder(source)
    inventory = write_shards(
        pictures,
        folder,
        name=name,
        size=size,
        records_per_shard=records_per_shard,
        shuffle_seed=shuffle_seed,
        quality=quality,
    )
    print(
        f"{inventory['records']} pictures of {len(inventory['classes'])} classes in {len(inventory['shards'])} shards: "
        f"{Path(folder) / name}-*.tar ({len(inventory['corrupt'])} corrupt pictures left out, listed in {name}.json)"
    )
