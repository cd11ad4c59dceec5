"""WebDataset shards of labeled images, local or copied to a local disk, with random access and exact resumption."""

from __future__ import annotations

import os
import re
from glob import glob
from pathlib import Path

from webdataset.shardlists import expand_urls

from datamodules.base_images import RecordImages, Split
from datamodules.records import RecordExamples
from datamodules.shard_examples import ShardExamples, token_shape
from datamodules.storage.downloads import Downloads, is_url
from datamodules.storage.shard_classes import recorded_classes
from lightning_guide.utils.errors import did_you_mean

__all__ = ["Shards", "shard_paths"]


class Shards(RecordImages):
    """Images (jpg, jpeg, png, webp) and class labels (cls) in tar shards, as RGB.

    Text embeddings `KEY.tokens.npy` and `KEY.mask.npy` can replace labels, see `ShardExamples`. Shards are indexed
    once, at the first use of their data. Corrupt images are counted and reported; their names are in `corrupt`. Each
    process decodes and keeps its own copy if `cache` is on.

    Example of file patterns: `data/train-{00000..00009}.tar`, `data/train-*.tar`, or a list of either.
    """

    def __init__(
        self,
        train: str | list[str],
        heldout: str | list[str],
        *,
        num_classes: int = 0,
        token_channels: int = 0,
        token_length: int = 77,
        prompt_file: str | None = None,
        size: int | None = None,
        cache: bool | None = None,
        flip: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        downloads: str | None = None,
    ) -> None:
        """Find the shards.

        Args:
            train: shards to train on.
            heldout: shards of the held-out set.
            num_classes: number of classes; 0 ignores the labels.
            token_channels: C of the embeddings used as conditions; 0 ignores embeddings.
            token_length: L, the maximum number of tokens of an embedding; shorter ones are padded.
            prompt_file: embeddings that condition samples, npy or npz; default: those of held-out images.
            size: crop images to their central square and shrink them to `size` x `size` by the mean over areas;
                None keeps their size.
            cache: decode everything once into memory; None: only below 1 GiB.
            flip: mirror training images with probability 1/2.
            batch_size: images per process and micro-step.
            num_workers: loader processes; not needed for images in memory.
            seed: seed of the order of the training data.
            downloads: folder for copies of shards given by URL (http:, s3:, gs:, pipe: and others of webdataset); each
                is fetched once, when its data are first used.

        Raises:
            ValueError: if a pattern matches nothing or a shard is missing or listed twice; for URLs without
                `downloads`; if both labels and embeddings are requested; if the classes recorded beside the shards are
                not `num_classes`, or differ for `train` and `heldout`.
        """
        self.token_channels, self.token_length, self.prompt_file = token_channels, token_length, prompt_file
        self._token_shape = token_shape(num_classes, token_channels, token_length)
        self._downloads = None if downloads is None else Downloads(downloads)
        self._paths = {"train": shard_paths(train, self._downloads), "heldout": shard_paths(heldout, self._downloads)}
        self.class_names = recorded_classes(self._paths["train"], self._paths["heldout"], num_classes)
        super().__init__(
            num_classes=num_classes,
            size=size,
            cache=cache,
            flip=flip,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )

    def first(self) -> RecordExamples:
        """Return the examples of the first training shard."""
        return ShardExamples(self._fetched(self._paths["train"][:1]), size=None, num_classes=self.num_classes)

    def records(self, split: Split) -> RecordExamples:
        """Return the examples of a split."""
        paths = self._fetched(self._paths[split])
        return ShardExamples(paths, size=self.size, num_classes=self.num_classes, token_shape=self._token_shape)

    def _fetched(self, paths: list[Path]) -> list[Path]:
        """Fetch missing copies, and return `paths`."""
        if self._downloads is not None:
            self._downloads.fetch(paths)
        return paths


def shard_paths(patterns: str | list[str], downloads: Downloads | None = None) -> list[Path]:
    """Return the local files of `patterns`: braces are expanded in order, wildcards matched and sorted.

    For URLs these are the paths of the copies in `downloads`, fetched or not.

    Raises:
        ValueError: if nothing is named or matched, files are missing or named twice, or for a URL without `downloads`.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    names = [os.path.expanduser(name) for pattern in given for name in expand_urls(pattern)]
    paths: list[Path] = []
    for name in names:
        if is_url(name):
            if downloads is None:
                raise ValueError(
                    f"the shard {name!r} is a URL; expected local tar files, or `downloads`, a folder to fetch it to"
                )
            paths.append(downloads.path(name))
            continue
        matches = [Path(match) for match in sorted(glob(name))] if re.search(r"[*?\[]", name) else [Path(name)]
        if not matches:
            hint = did_you_mean(name)
            raise ValueError(f"no file matches {name!r}{hint}; expected tar shards (the folder {_folder(Path(name))})")
        paths += matches
    if not paths:
        raise ValueError(f"no shards are named by {patterns!r}; expected at least one tar file or pattern")
    remote = {} if downloads is None else downloads.urls
    missing = [path for path in paths if path not in remote and not path.is_file()]
    if missing:
        first = f"{missing[0]}{did_you_mean(missing[0].parent)}; the folder {_folder(missing[0])}"
        raise ValueError(f"{len(missing)} of {len(paths)} shards are missing, first {first}")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"the shard {twice} is named twice in {patterns!r}; expected each shard once")
    return paths


def _folder(path: Path) -> str:
    """Describe the tar files of a folder, for messages."""
    tars = sorted(found.name for found in path.parent.glob("*.tar"))
    listed = ", ".join(tars[:5]) + (", ..." if len(tars) > 5 else "")
    return f"{path.parent} holds {listed or 'no tar files'}"
