"""On-disk caches of reference statistics and features, keyed by the content of data and extractor."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.reference.statistics import Statistics, read_statistics, write_statistics
from lightning_guide.utils.distributed import run_on_all_ranks, true_on_all_ranks
from lightning_guide.utils.files import read_numbers, write_numbers

__all__ = ["FeatureCache", "ReferenceCache", "StatisticsCache", "fingerprint"]


Value = TypeVar("Value")


def fingerprint(reference: Iterable[Batch]) -> tuple[str, int]:
    """Return (SHA-256 of type, shape and bytes of all examples in order, number of examples).

    Labels and the split into batches have no influence.

    Raises:
        ValueError: if examples differ in type or shape.
    """
    digest, count, kind = hashlib.sha256(), 0, ""
    for batch in reference:
        x = batch.x.detach().cpu().contiguous()
        if not kind:
            kind = json.dumps([str(x.dtype), list(x.shape[1:])])
            digest.update(kind.encode())
        elif kind != json.dumps([str(x.dtype), list(x.shape[1:])]):
            raise ValueError(f"the real data change within the set: {kind}, then {x.dtype} {list(x.shape[1:])}")
        digest.update(x.numpy().data)
        count += len(x)
    return digest.hexdigest(), count


class ReferenceCache(ABC, Generic[Value]):
    """Base of caches in `folder`: one file for each content of the data, extractor and number of examples.

    To find the file the data are read once and hashed, without the extractor's network. Several processes may use one
    folder at once. A file that cannot be read is computed again; a file that cannot be written causes a warning.

    Attributes:
        what: name of the values in warnings.
    """

    what: str

    def __init__(self, folder: str | Path) -> None:
        """Choose `folder`, which is created when the first file is written."""
        self.folder = Path(folder).expanduser()

    @abstractmethod
    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Value | None:
        """Return the value of a file, None if it belongs to other data.

        Raises:
            ValueError: if the file is damaged.
        """

    @abstractmethod
    def write(self, path: Path, value: Value, extractor: FeatureExtractor, data: str) -> None:
        """Write a file atomically.

        Raises:
            OSError: if writing fails.
        """

    def key(self, extractor: FeatureExtractor, data: str, count: int) -> list[str | int]:
        """Return all that a value depends on."""
        return [extractor.identity.name, extractor.identity.weights, data, count]

    def path(self, extractor: FeatureExtractor, data: str, count: int) -> Path:
        """Return the file of the features of `extractor` on `count` examples with the fingerprint `data`."""
        key = hashlib.sha256(json.dumps(self.key(extractor, data, count)).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9]+", "-", extractor.identity.name)[:40].strip("-")
        return self.folder / f"{name}-{key[:24]}.npz"

    def get(self, extractor: FeatureExtractor, reference: Iterable[Batch], compute: Callable[[], Value]) -> Value:
        """Return the value for the features of `extractor` on `reference`, from its file or by `compute`.

        `reference` is iterated more than once. Every process has to call this; if one of them does not find the file,
        all compute.

        Raises:
            ValueError: if the weights of the extractor cannot be found, or from `compute`.
        """
        data, count, path, stored = "", 0, self.folder, None

        def find() -> None:
            nonlocal data, count, path, stored
            data, count = fingerprint(reference)
            path = self.path(extractor, data, count)
            stored = self._stored(path, extractor, data, count)

        run_on_all_ranks(find)
        if true_on_all_ranks(stored is not None):
            assert stored is not None
            return stored
        return self._computed(path, compute, extractor, data)

    def get_here(self, extractor: FeatureExtractor, data: str, count: int, compute: Callable[[], Value]) -> Value:
        """Return the value for `count` examples with the fingerprint `data`, on this process alone.

        Raises:
            ValueError: as `get`.
        """
        path = self.path(extractor, data, count)
        stored = self._stored(path, extractor, data, count)
        return self._computed(path, compute, extractor, data) if stored is None else stored

    def _computed(self, path: Path, compute: Callable[[], Value], extractor: FeatureExtractor, data: str) -> Value:
        """Compute the value and store it."""
        computed = compute()
        try:
            self.write(path, computed, extractor, data)
        except OSError as error:  # a full or read-only folder costs time, not the evaluation
            warnings.warn(f"{self.what} are not stored: {error}", stacklevel=2)
        return computed

    def _stored(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Value | None:
        """Return the value of the file `path`; None if it does not exist, or cannot be read."""
        try:
            return self.read(path, extractor, data, count) if path.is_file() else None
        except (ValueError, OSError) as error:  # damaged, not readable, or deleted in between
            warnings.warn(f"{self.what} are computed again: {error}", stacklevel=3)
            return None


class StatisticsCache(ReferenceCache[Statistics]):
    """Cache of `Statistics`, in files that `read_statistics` reads."""

    what = "reference statistics"

    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Statistics | None:
        """Return the statistics of a file, None if it belongs to other data."""
        statistics = read_statistics(path, extractor)
        return statistics if (statistics.data, statistics.num_images) == (data, count) else None

    def write(self, path: Path, value: Statistics, extractor: FeatureExtractor, data: str) -> None:
        """Write the statistics with their extractor and data."""
        write_statistics(path, replace(value, extractor=extractor.identity, data=data))


class FeatureCache(ReferenceCache[Tensor]):
    """Cache of features (N, F) of the `max_reference` examples that a `FeatureMetric` compares with."""

    what = "reference features"

    def __init__(self, folder: str | Path, max_reference: int) -> None:
        """Choose the folder and the largest number of examples, `max_reference`."""
        super().__init__(folder)
        self.max_reference = max_reference

    def key(self, extractor: FeatureExtractor, data: str, count: int) -> list[str | int]:
        """Return all that the features depend on; differs from the key of statistics."""
        return [*super().key(extractor, data, count), "features", min(self.max_reference, count)]

    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Tensor | None:
        """Return the features; None if their number is another."""
        content = read_numbers(path, what=self.what)
        if set(content) != {"features"} or content["features"].ndim != 2:
            raise ValueError(f"{path} holds {sorted(content)}; expected features (N, F)")
        features = torch.from_numpy(content["features"])
        return features if len(features) == min(self.max_reference, count) else None

    def write(self, path: Path, value: Tensor, extractor: FeatureExtractor, data: str) -> None:
        """Write the features only; the file name is a hash of the rest."""
        write_numbers(path, {"features": value.cpu().numpy()})
