"""WebDataset shards of labeled pictures, local or fetched to a local disk: read at random, runs resume exactly."""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path

from webdataset.shardlists import expand_urls

from datamodules.base_images import RecordImages, Split
from datamodules.records import RecordExamples
from datamodules.shard_examples import ShardExamples, token_shape
from datamodules.storage.downloads import Downloads, is_url

__all__ = ["Shards", "shard_paths"]


class Shards(RecordImages):
    """Pictures (jpg, jpeg, png, webp) and class labels (cls) in tar shards, as RGB.

    In place of labels there may be embeddings of texts, `KEY.tokens.npy` and `KEY.mask.npy`, see `ShardExamples`.
    Shards are indexed once, at the first use of their data. Corrupt pictures are counted and reported; their names are
    in `corrupt`. Each process decodes and keeps its own copy when `cache` is on.

    Example of the files: `data/train-{00000..00009}.tar`, `data/train-*.tar`, or a list of either.
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
        """Looks the shards up.

        Args:
            train: shards to train on.
            heldout: shards of the held-out set.
            num_classes: number of classes; 0 ignores the labels.
            token_channels: C of the embeddings that are the conditions; 0 ignores embeddings.
            token_length: L, the most tokens of an embedding; shorter ones are padded.
            prompt_file: embeddings that samples are drawn under, npy or npz; default: those of held-out pictures.
            size: crop pictures to their central square and shrink them to `size` x `size` by the mean over areas;
                None leaves them as they are.
            cache: decode everything once into memory; None does so below 1 GiB.
            flip: mirror training pictures with probability 1/2.
            batch_size: pictures per process and micro-step.
            num_workers: loader processes; of no use when the pictures are in memory.
            seed: order of the training data.
            downloads: folder for copies of shards that are given by URL (http:, s3:, gs:, pipe:, ...: what webdataset
                opens); each is fetched once, when its data are first used.

        Raises:
            ValueError: if a pattern matches nothing or a shard is missing or listed twice; for URLs without
                `downloads`; if both labels and embeddings are asked for.
        """
        self.token_channels, self.token_length, self.prompt_file = token_channels, token_length, prompt_file
        self._token_shape = token_shape(num_classes, token_channels, token_length)
        self._downloads = None if downloads is None else Downloads(downloads)
        self._paths = {"train": shard_paths(train, self._downloads), "heldout": shard_paths(heldout, self._downloads)}
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
        """The first training shard."""
        return ShardExamples(self._here(self._paths["train"][:1]), size=None, num_classes=self.num_classes)

    def records(self, split: Split) -> RecordExamples:
        """The shards of a split, indexed."""
        paths = self._here(self._paths[split])
        return ShardExamples(paths, size=self.size, num_classes=self.num_classes, token_shape=self._token_shape)

    def _here(self, paths: list[Path]) -> list[Path]:
        """`paths`, all of which exist."""
        if self._downloads is not None:
            self._downloads.fetch(paths)
        return paths


def shard_paths(patterns: str | list[str], downloads: Downloads | None = None) -> list[Path]:
    """The local files that patterns name: braces are expanded in order, wildcards matched and sorted.

    For URLs these are the copies in `downloads`, whether they are fetched already or not.

    Raises:
        ValueError: if nothing is named or matched, files are missing or named twice, or for a URL without `downloads`.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    names = [name for pattern in given for name in expand_urls(pattern)]
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
            raise ValueError(f"no file matches {name!r}; expected tar shards (the folder {_folder(Path(name))})")
        paths += matches
    if not paths:
        raise ValueError(f"no shards are named by {patterns!r}; expected at least one tar file or pattern")
    remote = {} if downloads is None else downloads.urls
    missing = [path for path in paths if path not in remote and not path.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} shards are missing, first {missing[0]}; the folder {_folder(missing[0])}"
        )
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"the shard {twice} is named twice in {patterns!r}; expected each shard once")
    return paths


def _folder(path: Path) -> str:
    """What a folder has to offer instead."""
    tars = sorted(found.name for found in path.parent.glob("*.tar"))
    listed = ", ".join(tars[:5]) + (", ..." if len(tars) > 5 else "")
    return f"{path.parent} holds {listed or 'no tar files'}"
