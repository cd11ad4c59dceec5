"""The command statistics: reference statistics of a data set, computed and stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.frechet import FrechetDistance
from lightning_guide.evaluation.reference.cache import fingerprint
from lightning_guide.evaluation.reference.statistics import write_statistics
from lightning_guide.utils.needs import check_writable

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
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hashed, count = fingerprint(reference(torch.device("cpu")))
    metric = FrechetDistance(extractor)
    metric.to(where)
    fitted = metric.fit(reference(where))
    path = write_statistics(out, replace(fitted, extractor=extractor.identity, data=hashed))
    print(f"{path}: {count} examples, {extractor.identity}")
    return path
