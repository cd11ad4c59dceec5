"""The cache of features of real examples, for metrics that need them one by one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.number_archive import read_numbers, write_numbers
from lightning_guide.evaluation.reference_cache import ReferenceCache

__all__ = ["FeatureCache"]


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
