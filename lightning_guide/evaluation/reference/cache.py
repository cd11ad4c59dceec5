"""A folder of what is known of real data: each computed once for its data and extractor, found by their content.

The cache of mean and covariance of real features.

The cache of features of real examples, for metrics that need them one by one.
"""

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
from lightning_guide.utils.distributed import true_on_all_ranks
from lightning_guide.utils.files import read_numbers, write_numbers

__all__ = ["FeatureCache", "ReferenceCache", "StatisticsCache", "fingerprint"]


Value = TypeVar("Value")


def fingerprint(reference: Iterable[Batch]) -> tuple[str, int]:
    """(SHA-256 over type, shape and bytes of all examples in their order, how many there are).

    Labels do not count, nor how the examples are parted into batches.

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
    """Values in `folder`, one file for each content of the data, extractor and number of examples.

    To find out which file is wanted the data are read once and hashed, without the extractor's network. Several
    processes may use one folder at once. A file that cannot be read is computed again, and where none can be written a
    warning says so.

    Attributes:
        what: the values, as a warning calls them.
    """

    what: str

    def __init__(self, folder: str | Path) -> None:
        """`folder` is made when the first file is written."""
        self.folder = Path(folder)

    @abstractmethod
    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Value | None:
        """What the file holds; None if it belongs to other data.

        Raises:
            ValueError: if it is damaged.
        """

    @abstractmethod
    def write(self, path: Path, value: Value, extractor: FeatureExtractor, data: str) -> None:
        """Writes the file at once.

        Raises:
            OSError: if the disk refuses.
        """

    def key(self, extractor: FeatureExtractor, data: str, count: int) -> list[str | int]:
        """All that a value depends on."""
        return [extractor.identity.name, extractor.identity.weights, data, count]

    def path(self, extractor: FeatureExtractor, data: str, count: int) -> Path:
        """The file for features of `extractor` on `count` examples with the fingerprint `data`."""
        key = hashlib.sha256(json.dumps(self.key(extractor, data, count)).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9]+", "-", extractor.identity.name)[:40].strip("-")
        return self.folder / f"{name}-{key[:24]}.npz"

    def get(self, extractor: FeatureExtractor, reference: Iterable[Batch], compute: Callable[[], Value]) -> Value:
        """The value for the features of `extractor` on `reference`, by `compute` if it is not there yet.

        `reference` is gone through more than once. Every process has to call this; if one of them does not find the
        file, all compute.

        Raises:
            ValueError: if the weights of the extractor cannot be found, or what `compute` raises.
        """
        data, count = fingerprint(reference)
        path = self.path(extractor, data, count)
        found = self._stored(path, extractor, data, count)
        if true_on_all_ranks(found is not None):
            assert found is not None
            return found
        computed = compute()
        try:
            self.write(path, computed, extractor, data)
        except OSError as error:  # a folder that is full or not ours costs time, not the evaluation
            warnings.warn(f"{self.what} are not kept: {error}", stacklevel=2)
        return computed

    def _stored(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Value | None:
        """What the file `path` holds, if it is what it should be."""
        try:
            return self.read(path, extractor, data, count) if path.is_file() else None
        except (ValueError, OSError) as error:  # damaged; not ours to read, or gone by now
            warnings.warn(f"{self.what} are computed again: {error}", stacklevel=3)
            return None


class StatisticsCache(ReferenceCache[Statistics]):
    """`Statistics`, in files that `read_statistics` reads."""

    what = "reference statistics"

    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Statistics | None:
        """As `read_statistics`, None if the file belongs to other data."""
        found = read_statistics(path, extractor)
        return found if (found.data, found.num_images) == (data, count) else None

    def write(self, path: Path, value: Statistics, extractor: FeatureExtractor, data: str) -> None:
        """With what they belong to."""
        write_statistics(path, replace(value, extractor=extractor.identity, data=data))


class FeatureCache(ReferenceCache[Tensor]):
    """Features (N, F) of the `max_reference` examples that a `FeatureMetric` compares with."""

    what = "reference features"

    def __init__(self, folder: str | Path, max_reference: int) -> None:
        """Sets of at most `max_reference` examples."""
        super().__init__(folder)
        self.max_reference = max_reference

    def key(self, extractor: FeatureExtractor, data: str, count: int) -> list[str | int]:
        """Statistics have a shorter one."""
        return [*super().key(extractor, data, count), "features", min(self.max_reference, count)]

    def read(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Tensor | None:
        """The features; None if there are too many or too few of them."""
        content = read_numbers(path, what=self.what)
        if set(content) != {"features"} or content["features"].ndim != 2:
            raise ValueError(f"{path} holds {sorted(content)}; expected features (N, F)")
        found = torch.from_numpy(content["features"])
        return found if len(found) == min(self.max_reference, count) else None

    def write(self, path: Path, value: Tensor, extractor: FeatureExtractor, data: str) -> None:
        """The features alone: the name of the file says what they belong to."""
        write_numbers(path, {"features": value.cpu().numpy()})
