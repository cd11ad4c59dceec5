"""Images in a folder or a zip archive, read without conversion, labeled by `dataset.json` or by class folders."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from datamodules.base_images import RecordImages, Split
from datamodules.records import RecordExamples
from datamodules.storage.image_codec import SUFFIXES, UndecodableError
from lightning_guide.seeds import mix

__all__ = ["FileExamples", "ImageFiles", "ImageFolder", "is_hidden", "is_image", "labels_of", "image_files"]


class ImageFiles(ABC):
    """Files of a folder or archive, by their relative names with slashes."""

    place: Path

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            UndecodableError: if the file is damaged in an archive, encrypted, or compressed by an unknown method.
        """


class _Folder(ImageFiles):
    def __init__(self, place: Path) -> None:
        self.place = place

    def names(self) -> list[str]:
        walk = (Path(folder) / file for folder, _, files in os.walk(self.place, followlinks=True) for file in files)
        return sorted(path.relative_to(self.place).as_posix() for path in walk)

    def read(self, name: str) -> bytes:
        return (self.place / name).read_bytes()


class _Zip(ImageFiles):
    """A zip archive, opened separately by each process: loader workers must not share a file position."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def names(self) -> list[str]:
        return sorted(info.filename for info in self._archive().infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        try:
            return self._archive().read(name)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
        ) as error:  # the last: encryption, unknown method
            raise UndecodableError(f"{type(error).__name__}: {error}") from None

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.place)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self.place} is damaged or not a zip archive: {error}") from None
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"place": self.place, "_opened": None}


def image_files(place: str | Path) -> ImageFiles:
    """Open the files of a folder or of a zip archive.

    Raises:
        ValueError: if `place` does not exist.
    """
    path = Path(place)
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Zip(path)
    raise ValueError(f"{path} does not exist; expected a folder of images or a zip archive of them")


class FileExamples(RecordExamples):
    """Images among `ImageFiles`, with labels as found by `labels_of`."""

    def __init__(
        self, files: ImageFiles, names: Sequence[str], *, size: int | None, num_classes: int, classes: dict[str, int]
    ) -> None:
        """Select the images `names`, with labels `classes` (name -> label) if `num_classes` is not 0.

        Raises:
            ValueError: if an image has no label or one out of range; if no image is readable.
        """
        self.files, self.names = files, list(names)
        if not self.names:
            raise ValueError(f"{files.place} holds no images here; expected files ending in {', '.join(SUFFIXES)}")
        if num_classes:
            wrong = next((name for name in self.names if not 0 <= classes.get(name, -1) < num_classes), None)
            if wrong is not None:
                found = f"the label {classes[wrong]}" if wrong in classes else "no label"
                raise ValueError(f"{wrong} in {files.place} has {found}; expected 0 to {num_classes - 1}")
        labels = torch.tensor([classes[name] if num_classes else -1 for name in self.names])
        super().__init__(labels, labeled=num_classes > 0, size=size)

    @property
    def place(self) -> str:
        """Path of the folder or archive."""
        return str(self.files.place)

    def name(self, record: int) -> str:
        """Return the name of an image for messages."""
        return f"{self.names[record]} in {self.files.place}"

    def content(self, record: int) -> bytes:
        """Return the content of an image file."""
        return self.files.read(self.names[record])


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, lies in a hidden folder, or was added to an archive by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def labels_of(files: ImageFiles) -> tuple[list[str], dict[str, int]]:
    """Return the names of all images, sorted, and their labels by name.

    Labels come from the file `dataset.json`, {"labels": [[name, label], ...]}, if it exists, else from the first folder
    in each name, classes in alphabetical order.

    Raises:
        ValueError: if `dataset.json` holds something else.
    """
    names = files.names()
    images = [name for name in names if is_image(name)]
    if "dataset.json" in names:
        try:
            rows = json.loads(files.read("dataset.json"))["labels"]
            return images, {str(name): int(label) for name, label in rows or []}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'dataset.json in {files.place} is damaged ({error}); expected {{"labels": [["NAME", 0], ...]}} with '
                "whole numbers, or null"
            ) from None
    folders = sorted({name.split("/")[0] for name in images if "/" in name})
    return images, {name: folders.index(name.split("/")[0]) for name in images if "/" in name}


class ImageFolder(RecordImages):
    """Images in a folder or a zip archive, as RGB, with labels from `dataset.json` or class folders.

    Archives in the format of EDM2's dataset tool can be used directly. Corrupt images are counted and reported;
    their names are in `corrupt`. Shards (`lightning-guide convert`) load faster from slow or remote disks.
    """

    def __init__(
        self,
        train: str,
        heldout: float | str = 0.02,
        *,
        num_classes: int = 0,
        size: int | None = None,
        cache: bool | None = None,
        flip: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """List the files.

        Args:
            train: folder or zip archive to train on.
            heldout: another folder or archive, or the fraction of `train` that is held out, selected by file names.
            num_classes: number of classes; 0 ignores the labels.
            size: crop images to their central square and shrink them to `size` x `size` by the mean over areas;
                None keeps their size.
            cache: decode everything once into memory; None: only below 1 GiB.
            flip: mirror training images with probability 1/2.
            batch_size: images per process and micro-step.
            num_workers: loader processes; not needed for images in memory.
            seed: seed of the order of the training data.

        Raises:
            ValueError: if a place does not exist, holds no images, or has labels missing or out of range.
        """
        if isinstance(heldout, float | int) and not 0 < heldout < 1:
            raise ValueError(f"heldout is {heldout}; expected a folder, a zip archive, or a share between 0 and 1")
        files = image_files(train)
        names, labels = labels_of(files)
        if isinstance(heldout, str):
            other = image_files(heldout)
            self._files = {"train": (files, names, labels), "heldout": (other, *labels_of(other))}
        else:
            kept = [mix(name, "heldout") >= heldout * 2**63 for name in names]
            self._files = {
                "train": (files, [name for name, keep in zip(names, kept, strict=True) if keep], labels),
                "heldout": (files, [name for name, keep in zip(names, kept, strict=True) if not keep], labels),
            }
        super().__init__(
            num_classes=num_classes,
            size=size,
            cache=cache,
            flip=flip,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )

    def first(self) -> FileExamples:
        """Return the first training images, at most 100."""
        files, names, labels = self._files["train"]
        return FileExamples(files, names[:100], size=None, num_classes=self.num_classes, classes=labels)

    def records(self, split: Split) -> FileExamples:
        """Return the images of a split."""
        files, names, labels = self._files[split]
        return FileExamples(files, names, size=self.size, num_classes=self.num_classes, classes=labels)
