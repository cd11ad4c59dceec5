"""A folder of what is known of real data: each computed once for its data and extractor, found by their content."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.processes import on_all

__all__ = ["ReferenceCache", "fingerprint"]

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
        if on_all(found is not None):
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
