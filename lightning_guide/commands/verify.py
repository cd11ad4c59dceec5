"""The command verify: activations of feature extractors, compared with those of another machine or library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from lightning_guide.evaluation.features import (
    ClipFeatures,
    DINOv2Features,
    FeatureExtractor,
    InceptionFeatures,
)
from lightning_guide.evaluation.features.self_check import activations, deviations
from lightning_guide.utils.devices import choose_device
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import atomic
from lightning_guide.utils.needs import attempt, check_writable

__all__ = ["verify"]


def verify(
    what: Literal["extractors"],
    *,
    extractors: list[FeatureExtractor] | None = None,
    expect: str | None = None,
    out: str | None = None,
    tolerance: float = 1e-3,
    download: bool = False,
    device: str | None = None,
) -> None:
    """Print activations of feature extractors for fixed images, and compare them with those of a file.

    The images are defined by integers, equal everywhere: 256 and 32 pixels wide, for a trained classifier one of the
    shape that it takes. Numbers that agree show that weights, preprocessing and resizing agree. The file is one of
    --out, from another machine, or written by hand with the numbers of another library:
    {"extractors": {TITLE: {"256": {"mean": ..., "std": ..., "norm": ..., "features": [...]}, "32": ...}}}.

    Args:
        what: extractors.
        extractors: feature extractors; default: InceptionFeatures, DINOv2Features and ClipFeatures.
        expect: file of expected numbers.
        out: file to write the numbers to.
        tolerance: largest deviation, relative to the norm of the features.
        download: let packages download weights, or read those that they downloaded before.
        device: where to compute; default: a GPU if there is one.

    Raises:
        ValueError: if a number deviates, nothing could be compared or computed, or a file cannot be read.
    """
    if not tolerance > 0:
        raise ValueError(f"expected a positive tolerance, got {tolerance}")
    expected = None if expect is None else _read(expect)
    if out is not None:
        check_writable(Path(out).parent, "verify")
    where, found = choose_device(device), {}
    for extractor in extractors or [InceptionFeatures(), DINOv2Features(), ClipFeatures()]:
        title = extractor.title()
        if extractor.downloads() and not download:
            print(f"{title}: left out, no file of weights is named; --download true lets its package fetch them")
        elif error := attempt(extractor.load):
            print(f"{title}: left out, {error}")
        else:
            found[title] = activations(extractor, where)
            print("\n".join(_lines(extractor, found[title])))
    if out is not None:
        with atomic(Path(out)) as temporary:
            temporary.write_text(json.dumps({"extractors": found}, indent=1) + "\n", encoding="utf-8")
        print(f"written to {out}")
    if not found:
        raise ValueError("no extractor has its weights; expected files in --extractors, or --download true")
    if expected is not None:
        _compare(found, expected, str(expect), tolerance)


def _lines(extractor: FeatureExtractor, found: dict[str, Any]) -> list[str]:
    lines = [str(extractor.identity)]
    for size in extractor.checked_shapes():
        of = found[size]
        first = " ".join(f"{value:.5g}" for value in of["features"][:4])
        numbers = "  ".join(f"{name} {of[name]:.6g}" for name in ("mean", "std", "norm"))
        lines.append(f"  size {size}: {first} ... of {len(of['features'])}  {numbers}  hash {of['hash']}")
    return [*lines, f"  comparable: {extractor.comparable()}"]


def _read(path: str) -> dict[str, Any]:
    """Return the expected numbers by title."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise ValueError(f"expected numbers: there is no file {path}{did_you_mean(place)}")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        found = content["extractors"]
        assert isinstance(found, dict) and all(isinstance(each, dict) for each in found.values())
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path} holds no expected numbers; expected JSON as --out writes it") from None
    return dict(found)


def _compare(found: dict[str, Any], expected: dict[str, Any], path: str, tolerance: float) -> None:
    """Print all deviations; raise ValueError if one is too large or there are none."""
    wrong, compared = [], 0
    for title in sorted(found.keys() & expected.keys()):
        try:
            for name, deviation in deviations(found[title], expected[title]):
                compared += 1
                print(f"{title}, {name}: deviation {deviation:.2g} of the norm")
                wrong += [f"{title}, {name}"] if not deviation <= tolerance else []
        except ValueError as error:
            raise ValueError(f"{path}, {title}: {error}") from None
        weights = expected[title].get("weights")
        if weights and weights != found[title]["weights"]:
            print(f"{title}: other weights, {str(weights)[:16]} in {path}, {found[title]['weights'][:16]} here")
    for title in sorted(expected.keys() - found.keys()):
        print(f"{title}: not compared, it was left out here")
    if wrong:
        raise ValueError(f"{len(wrong)} of {compared} numbers deviate by more than {tolerance}: {'; '.join(wrong[:5])}")
    if not compared:
        raise ValueError(f"{path} holds numbers of {', '.join(expected) or 'nothing'}; expected {', '.join(found)}")
    print(f"all {compared} numbers of {path} agree within {tolerance} of the norm")
