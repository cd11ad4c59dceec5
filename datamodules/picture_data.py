"""Pictures in folders and zip archives, trained on as they are: no conversion, one file read for each picture."""

from __future__ import annotations

from datamodules.picture_files import FileExamples, labels_of, picture_files
from datamodules.record_images import RecordImages, Split
from lightning_guide.seeds import mix

__all__ = ["Pictures"]


class Pictures(RecordImages):
    """Pictures in a folder or a zip archive, as RGB, with labels of `dataset.json` or of class folders.

    Archives in the format of EDM2's dataset tool can be used as they are. Corrupt pictures are counted and reported;
    their names are in `corrupt`. Shards (`lightning-guide convert`) are read faster from slow or remote disks.
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
        """Lists the files.

        Args:
            train: folder or zip archive to train on.
            heldout: another one, or the share of `train` that is held out, chosen by the names of the files.
            num_classes: number of classes; 0 ignores the labels.
            size: crop pictures to their central square and shrink them to `size` x `size` by the mean over areas;
                None leaves them as they are.
            cache: decode everything once into memory; None does so below 1 GiB.
            flip: mirror training pictures with probability 1/2.
            batch_size: pictures per process and micro-step.
            num_workers: loader processes; of no use when the pictures are in memory.
            seed: order of the training data.

        Raises:
            ValueError: if a place does not exist, holds no pictures, or has labels missing or out of range.
        """
        if isinstance(heldout, float | int) and not 0 < heldout < 1:
            raise ValueError(f"heldout is {heldout}; expected a folder, a zip archive, or a share between 0 and 1")
        files = picture_files(train)
        names, labels = labels_of(files)
        if isinstance(heldout, str):
            other = picture_files(heldout)
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
        """The first training pictures."""
        files, names, labels = self._files["train"]
        return FileExamples(files, names[:100], size=None, num_classes=self.num_classes, classes=labels)

    def records(self, split: Split) -> FileExamples:
        """The pictures of a split."""
        files, names, labels = self._files[split]
        return FileExamples(files, names, size=self.size, num_classes=self.num_classes, classes=labels)
