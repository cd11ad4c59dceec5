"""A folder of reference statistics, each computed once for its data and its extractor, found again by their content."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from lightning_guide.data import Batch
from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.statistics import Statistics, read_statistics, write_statistics
from lightning_guide.processes import on_all

__all__ = ["StatisticsCache", "fingerprint"]


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


class StatisticsCache:
    """Statistics in `folder`, one file for each content of the data, extractor and number of examples.

    To find out which file is wanted the data are read once and hashed, without the extractor's network. Several
    processes may use one folder at once. A file that cannot be read is computed again, and where none can be written a
    warning says so.
    """

    def __init__(self, folder: str | Path) -> None:
        """`folder` is made when the first file is written."""
        self.folder = Path(folder)

    def get(
        self, extractor: FeatureExtractor, reference: Iterable[Batch], compute: Callable[[], Statistics]
    ) -> Statistics:
        """The statistics of the features of `extractor` on `reference`, by `compute` if they are not there yet.

        `reference` may be gone through more than once. Every process has to call this; if one of them does not find the
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
        computed = replace(compute(), extractor=extractor.identity, data=data)
        try:
            write_statistics(path, computed)
        except OSError as error:  # a folder that is full or not ours costs time, not the evaluation
            warnings.warn(f"reference statistics are not kept: {error}", stacklevel=2)
        return computed

    def _stored(self, path: Path, extractor: FeatureExtractor, data: str, count: int) -> Statistics | None:
        """What the file `path` holds, if it is what it should be."""
        if not path.is_file():
            return None
        try:
            found = read_statistics(path, extractor)
        except ValueError as error:
            warnings.warn(f"reference statistics are computed again: {error}", stacklevel=3)
            return None
        return found if (found.data, found.num_images) == (data, count) else None

    def path(self, extractor: FeatureExtractor, data: str, count: int) -> Path:
        """The file for features of `extractor` on `count` examples with the fingerprint `data`."""
        identity = extractor.identity
        key = hashlib.sha256(json.dumps([identity.name, identity.weights, data, count]).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', identity.name)[:40].strip('-')}-{key[:24]}.npz"
