"""The command `convert`: write class folders, archives or torchvision datasets to WebDataset shards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor

from datamodules.image_folder import image_files, is_hidden, is_image, labels_of
from datamodules.storage.image_codec import SUFFIXES, UndecodableError, decode_image
from datamodules.storage.shard_writer import write_shards

__all__ = ["ClassFolder", "ImageArchive", "convert", "torchvision_dataset"]


class ClassFolder(Sequence[tuple[Tensor, int]]):
    """Images in `folder/CLASS/`, at any depth, as (uint8 (3, H, W), label); classes in alphabetical order."""

    def __init__(self, folder: str | Path) -> None:
        """List the folder.

        Raises:
            ValueError: if the folder does not exist, has no class folders, or a class has no images.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(
                f"the source {str(folder)!r} is not a folder; expected FOLDER with FOLDER/CLASS/*.png inside"
            )
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
        if not self.classes:
            raise ValueError(f"{root} has no folders inside; expected one for each class, {root}/CLASS/*.png")
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            inside = (path.relative_to(root) for path in (root / name).rglob("*"))
            found = sorted(root / path for path in inside if is_image(path.as_posix()))
            if not found:
                raise ValueError(f"the class folder {root / name} holds no images; expected {', '.join(SUFFIXES)}")
            self.files += [(path, label) for path in found]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""
        return str(self.files[index][0])

    def __getitem__(self, index: Any) -> Any:
        path, label = self.files[index]
        try:
            return decode_image(path.read_bytes()), label
        except UndecodableError as error:
            raise UndecodableError(f"{self.name(index)} ({error})") from None


class ImageArchive(Sequence[tuple[Tensor, int]]):
    """Images in a zip archive as (uint8 (3, H, W), label), with labels as in `image_folder.labels_of`."""

    def __init__(self, path: str | Path) -> None:
        """List the archive.

        Raises:
            ValueError: if the archive does not exist, or an image in it has no label.
        """
        self.files = image_files(path)
        self.names, self.labels = labels_of(self.files)
        for name in self.names:
            if name not in self.labels:
                raise ValueError(f"{name} in {path} has no label; expected a class folder, or a row of dataset.json")
        folders = {self.labels[name]: name.split("/")[0] for name in self.names}
        listed = len(set(folders.values())) < len(folders)  # several classes in one folder: by dataset.json
        count = max(folders, default=-1) + 1
        self.classes = [str(label) if listed else folders.get(label, str(label)) for label in range(count)]

    def __len__(self) -> int:
        return len(self.names)

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
        source: a folder with one folder of images for each class, a zip archive of such folders or of images with a
            `dataset.json`, or `torchvision:CIFAR10:ROOT`.
        folder: folder of the shards.
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
        images: Any = torchvision_dataset(dataset, root, split=name, download=download)
    else:
        images = ImageArchive(source) if Path(source).is_file() else ClassFolder(source)
    inventory = write_shards(
        images,
        folder,
        name=name,
        size=size,
        records_per_shard=records_per_shard,
        shuffle_seed=shuffle_seed,
        quality=quality,
    )
    print(
        f"{inventory['records']} images of {len(inventory['classes'])} classes in {len(inventory['shards'])} shards: "
        f"{Path(folder) / name}-*.tar ({len(inventory['corrupt'])} corrupt images left out, listed in {name}.json)"
    )
