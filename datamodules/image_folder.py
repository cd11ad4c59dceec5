"""Images in a folder or an archive, read without conversion, labeled by `dataset.json` or by class folders."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from datamodules.base_images import RecordImages, Split
from datamodules.records import RecordExamples
from datamodules.storage.image_codec import SUFFIXES
from datamodules.storage.image_files import ImageFiles, image_files
from datamodules.storage.labels import LabeledNames, labels_of, shown
from lightning_guide.seeds import mix

__all__ = ["FileExamples", "ImageFolder", "held_out"]


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


class ImageFolder(RecordImages):
    """Images in a folder, a zip archive or a tar, as RGB, with labels from `dataset.json` or class folders.

    Archives in the format of EDM2's dataset tool can be used directly. The class folders of `train` are numbered in
    alphabetical order, and those of `heldout` by the same names. Corrupt images are counted and reported;
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
            train: folder or archive to train on.
            heldout: another folder or archive, or the fraction of `train` that is held out, selected by file names; at
                least one image is held out and one is kept.
            num_classes: number of classes of `train`; 0 ignores the labels.
            size: crop images to their central square and shrink them to `size` x `size` by the mean over areas;
                None keeps their size.
            cache: decode everything once into memory; None: only below 1 GiB.
            flip: mirror training images with probability 1/2.
            batch_size: images per process and micro-step.
            num_workers: loader processes; not needed for images in memory.
            seed: seed of the order of the training data.

        Raises:
            ValueError: if a place does not exist or holds no images, labels are missing, or the number of classes is
                not `num_classes`.
        """
        if isinstance(heldout, float | int) and not 0 < heldout < 1:
            raise ValueError(f"heldout is {heldout}; expected a folder, a zip archive, or a share between 0 and 1")
        files = image_files(train)
        found = labels_of(files)
        if num_classes > 0:
            _check_classes(files, found, num_classes)
            self.class_names = found.classes
        if isinstance(heldout, str):
            other = image_files(heldout)
            there = labels_of(other, found.classes if num_classes > 0 else None)
            self._files = {"train": (files, found.images, found.labels), "heldout": (other, there.images, there.labels)}
        else:
            apart = held_out(found.images, heldout, place=str(files.place))
            kept = [name for name in found.images if name not in apart]
            held = [name for name in found.images if name in apart]
            self._files = {"train": (files, kept, found.labels), "heldout": (files, held, found.labels)}
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


def _check_classes(files: ImageFiles, found: LabeledNames, num_classes: int) -> None:
    """Refuse images without labels, and another number of classes."""
    unlabeled = next((name for name in found.images if name not in found.labels), None)
    if unlabeled is not None:
        raise ValueError(
            f"{unlabeled} in {files.place} has no label; expected 0 to {num_classes - 1}, from a class folder or a row "
            "of dataset.json"
        )
    if found.images and len(found.classes) != num_classes:
        empty = f"; without images: {shown(found.empty)}" if found.empty else ""
        names = f"{len(found.classes)} classes ({shown(found.classes)}{empty})"
        raise ValueError(f"{files.place} has {names}; num_classes is {num_classes}")


def held_out(names: Sequence[str], share: float, *, place: str) -> set[str]:
    """Return the names that are held out: those of the smallest hashes, at least one, and not all."""
    if len(names) == 1:
        raise ValueError(f"{place} holds one image; expected at least two, to hold out a share of {share:g}")
    hashes = {name: mix(name, "heldout") for name in names}
    apart = {name for name in names if hashes[name] < share * 2**63}
    order = sorted(names, key=hashes.__getitem__)
    return (apart or set(order[:1])) - set(order[-1:])
