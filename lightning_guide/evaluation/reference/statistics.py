"""Mean and covariance of features on disk, in files of this library and in published formats.

Files of this library are npz archives with `mu` and `sigma`, readable by other programs, and their provenance:
`num_images`, the `extractor` and the hash of its `weights`, the `data_shape` of the examples, a hash of the `data`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_guide.evaluation.features.base import FeatureExtractor, Identity
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import read_numbers, write_numbers
from lightning_guide.utils.safe_pickle import read_arrays

__all__ = ["Statistics", "read_statistics", "write_statistics"]


@dataclass(frozen=True)
class Statistics:
    """Gaussian fitted to features, with provenance.

    Attributes:
        mean: (F,), float64.
        covariance: (F, F), float64, unbiased.
        num_images: number of examples; None if unknown.
        extractor: identity of the feature extractor; None if unknown.
        data_shape: shape of one example in stored form; None if unknown.
        data: `fingerprint` of the examples; "" if unknown.
    """

    mean: Tensor
    covariance: Tensor
    num_images: int | None = None
    extractor: Identity | None = None
    data_shape: tuple[int, ...] | None = None
    data: str = ""


def write_statistics(path: str | Path, statistics: Statistics) -> Path:
    """Write `statistics` atomically to `path`, an npz archive; create the folder. Several processes may write one file.

    Raises:
        OSError: if writing fails.
    """
    content: dict[str, Any] = {"num_images": statistics.num_images, "data": statistics.data or None}
    if statistics.extractor is not None:
        content |= {"extractor": statistics.extractor.name, "weights": statistics.extractor.weights}
    if statistics.data_shape is not None:
        content["data_shape"] = statistics.data_shape
    content |= {"mu": statistics.mean.cpu().numpy(), "sigma": statistics.covariance.cpu().numpy()}
    return write_numbers(path, {key: value for key, value in content.items() if value is not None})


def read_statistics(path: str | Path, extractor: FeatureExtractor) -> Statistics:
    """Read statistics of the features of `extractor` from a file; nothing in it is executed.

    Supported are npz archives with `mu` and `sigma`, and pickles of a dict with `num_images` and, under the published
    name of each extractor ("fid", "fd_dinov2"), a dict with `mu` and `sigma`. A published name and an archive without
    `extractor` do not identify the weights; only the width of the features can be checked then. Such an archive does
    not identify the kind of features either, which causes a warning.

    Raises:
        ValueError: if the file has another format or extractor, or does not hold a Gaussian.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"reference statistics: there is no file {path}{did_you_mean(path)}")
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    if not archive:
        return _read_pickle(path, extractor)
    statistics = _read_archive(path)
    if statistics.extractor is None:
        warnings.warn(
            f"{path} does not name its extractor; it is used with {extractor.title()} without a check",
            stacklevel=2,
        )
    elif statistics.extractor != extractor.identity:
        raise ValueError(
            f"the statistics in {path} are those of another extractor: {statistics.extractor}; "
            f"expected {extractor.identity}"
        )
    return statistics


def _read_archive(path: str | Path) -> Statistics:
    content = read_numbers(path, what="statistics")
    mean, covariance = _gaussian(path, content)
    try:
        return Statistics(
            mean,
            covariance,
            num_images=int(content["num_images"]) if "num_images" in content else None,
            extractor=Identity(str(content["extractor"]), str(content["weights"])) if "extractor" in content else None,
            data_shape=tuple(int(n) for n in content["data_shape"]) if "data_shape" in content else None,
            data=str(content.get("data", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} has no valid provenance: {reason}") from None


def _read_pickle(path: str | Path, extractor: FeatureExtractor) -> Statistics:
    content = read_arrays(path, kind="file of reference statistics")
    held = sorted(str(key) for key in content if isinstance(content[key], dict)) if isinstance(content, dict) else []
    if extractor.published not in held:
        name = "no published name" if extractor.published is None else f"the published name {extractor.published!r}"
        raise ValueError(
            f"{path} holds statistics named {', '.join(held) or 'nothing'}, and {extractor.title()} has {name}"
        )
    mean, covariance = _gaussian(path, content[extractor.published])
    count = content.get("num_images")
    return Statistics(mean, covariance, num_images=count if isinstance(count, int) else None)


def _gaussian(path: str | Path, content: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return mean (F,) and covariance (F, F), float64; raise ValueError if `mu` and `sigma` are anything else."""
    missing = [name for name in ("mu", "sigma") if name not in content]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}; expected mu and sigma, found {sorted(content)}")
    mu, sigma = (np.asarray(content[name]) for name in ("mu", "sigma"))
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f" or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = f"mu {mu.dtype} {mu.shape} and sigma {sigma.dtype} {sigma.shape}"
        raise ValueError(f"{path} holds {shapes}; expected floats of shape (F,) and (F, F)")
    mean, covariance = (torch.from_numpy(each.astype(np.float64)) for each in (mu, sigma))
    scale = covariance.diagonal().abs().max() if len(mean) else covariance.new_tensor(torch.nan)
    asymmetry = (covariance - covariance.T).abs().max() if len(mean) else scale
    std = covariance.diagonal().clamp(min=0).sqrt()  # bounds each entry by a product of two standard deviations
    bounded = bool((covariance.abs() <= torch.outer(std, std) + 1e-5 * scale).all())
    if not (mean.isfinite().all() and asymmetry <= 1e-5 * scale and bounded):
        raise ValueError(
            f"the sigma in {path} is not a covariance: expected finite numbers, symmetric, no correlation above 1"
        )
    return mean, (covariance + covariance.T) / 2
