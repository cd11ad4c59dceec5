"""Activations of extractors for fixed images, to be compared with another machine or library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_guide.evaluation.features.base import FeatureExtractor

__all__ = ["activations", "deviations", "fixed_image"]


def fixed_image(channels: int, height: int, width: int) -> Tensor:
    """Return an image uint8 (1, C, H, W), by integers alone and thus the same everywhere.

    With a = 512 (c + 1) i // H + 512 (3 - c) j // W in channel c, row i and column j, it is half of the triangle wave
    |a mod 512 - 256|, plus 2 ((c + 1) i j mod 61), a fine texture.

    Examples:
        >>> fixed_image(3, 256, 256)[0, :, 1, 2].tolist(), int(fixed_image(3, 32, 32).sum())
        ([125, 130, 135], 374520)
    """
    c, i, j = (torch.arange(n) for n in (channels, height, width))
    c, i = c[:, None, None], i[:, None]
    wave = (512 * (c + 1) * i // height + 512 * (3 - c) * j // width) % 512 - 256
    return (wave.abs() // 2 + 2 * ((c + 1) * i * j % 61)).to(torch.uint8)[None]


def activations(extractor: FeatureExtractor, device: torch.device) -> dict[str, Any]:
    """Return hash of the weights and, for each size, mean, std, norm, a hash and all features of the fixed image.

    The hash is that of the features in thousandths of their norm. Equal hashes mean equal features to that precision;
    different ones may come from rounding alone.

    Raises:
        ValueError: as of the extractor.
    """
    found: dict[str, Any] = {"weights": extractor.identity.weights}
    for size, shape in extractor.checked_shapes().items():
        features = extractor(fixed_image(*shape).to(device))[0].to("cpu", torch.float64)
        norm = features.norm()
        steps = (1000 * features / norm.clamp(min=1e-30)).round().to(torch.int32)
        found[size] = {
            "mean": _digits(features.mean()),
            "std": _digits(features.std(correction=0)),
            "norm": _digits(norm),
            "hash": hashlib.sha256(steps.numpy().tobytes()).hexdigest()[:8],
            "features": [_digits(value) for value in features],
        }
    return found


def deviations(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (name, deviation) for each number of `expected`, relative to the norm of the features found.

    Of features it is the norm of the difference; infinite if their number is another. Hashes are left out, and so is
    what is not in `expected`.

    Raises:
        ValueError: if a value is no number.
    """
    for size, ours in ((size, of) for size, of in found.items() if size != "weights"):
        theirs = expected.get(size) or {}
        if not isinstance(theirs, Mapping):
            raise ValueError(f"{size} holds {theirs!r:.50}; expected names and numbers")
        norm = max(float(ours["norm"]), 1e-30)
        for name in ("mean", "std", "norm", "features"):
            if name in theirs:
                yield f"{name} at size {size}", _distance(ours[name], theirs[name]) / norm


def _distance(ours: Any, theirs: Any) -> float:
    try:
        a, b = (torch.tensor(each, dtype=torch.float64).flatten() for each in (ours, theirs))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{theirs!r:.50} is not a number or a list of numbers") from None
    distance = float((a - b).norm()) if a.shape == b.shape else torch.inf
    return distance if distance == distance else torch.inf


def _digits(value: Tensor) -> float:
    return float(f"{float(value):.8g}")
