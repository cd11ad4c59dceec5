"""The command statistics: reference statistics of a data set, computed and stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.frechet import FrechetDistance
from lightning_guide.evaluation.reference.cache import fingerprint
from lightning_guide.evaluation.reference.statistics import write_statistics
from lightning_guide.utils.devices import choose_device
from lightning_guide.utils.needs import check_writable
from lightning_guide.utils.terminal import Progress, counted

__all__ = ["reference_statistics"]


def reference_statistics(
    out: str, *, data: pl.LightningDataModule, extractor: FeatureExtractor, device: str | None = None
) -> Path:
    """Store mean and covariance of the features of the training set, for `FrechetDistance(statistics=OUT)`.

    The file is an npz archive with `mu` and `sigma`, readable by other programs; it also records which extractor with
    which weights made it, of how many examples, of what shape, and holds a hash of them.

    Args:
        out: the file to write; it must not exist.
        data: the data module, as under `data` in a config.
        extractor: the feature extractor.
        device: where to compute; default: a GPU if there is one.

    Raises:
        ValueError: if the file exists, the data have no examples, or the weights cannot be found.
    """
    reference = getattr(data, "reference", None)
    if not callable(reference):
        raise ValueError(f"{type(data).__name__} has no examples to compare with; expected a class of `datamodules`")
    if Path(out).exists():
        raise ValueError(f"{out} exists; expected the name of a new file")
    check_writable(Path(out).parent, "statistics")
    where = choose_device(device)
    with Progress("statistics, reading", None, unit="examples") as bar:
        hashed, count = fingerprint(_shown(reference(torch.device("cpu")), bar))
    metric = FrechetDistance(extractor)
    metric.to(where)
    with Progress("statistics", count, unit="examples") as bar:
        fitted = metric.fit(_shown(reference(where), bar))
    path = write_statistics(out, replace(fitted, extractor=extractor.identity, data=hashed))
    print(f"{path}: {counted(count, 'example')}, {extractor.identity}")
    return path


def _shown(reference: Iterable[Batch], bar: Progress) -> Iterator[Batch]:
    """Yield the batches, each counted once it has been used."""
    for batch in reference:
        yield batch
        bar.add(len(batch.x))
