"""Names of snapshots: file names, image counts or fractions of the run given by users, and error messages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from lightning_guide.ema import LARGEST_SIGMA_REL

__all__ = [
    "Entry",
    "SnapshotMissing",
    "available",
    "file_name",
    "fraction_images",
    "named_count",
    "parse_file_names",
    "parse_images",
    "stored_exactly",
]


_NAME = re.compile(r"images-(\d{12,})-sigma_rel-(0\.\d{4})\.safetensors")


@dataclass(frozen=True, order=True)
class Entry:
    """File of a store: weights after `images` training images, averaged with `sigma_rel` (0: raw).

    Of a file that is still to be written, `since` counts the images at the update before; others record it themselves.
    """

    images: int
    sigma_rel: float
    path: Path
    since: int | None = field(default=None, compare=False)


class SnapshotMissing(ValueError):  # noqa: N818 - a state of the store, not a failure
    """Error for a snapshot that is not in the store; the message lists those that are.

    Attributes:
        not_yet: whether it is later than the newest snapshot, or than `until`.
    """

    def __init__(self, message: str, *, not_yet: bool) -> None:
        """`message` is one sentence; `not_yet`: whether the snapshot may still be stored."""
        super().__init__(message)
        self.not_yet = not_yet


def file_name(images: int, sigma_rel: float) -> str:
    """Name of the snapshot's file, from which (images, sigma_rel) can be read back exactly.

    Raises:
        ValueError: if `images` is negative, or 0 for an average, or `sigma_rel` is neither 0 nor a number of
            at most 4 decimals in (0, 12^-0.5).
    """
    if abs(sigma_rel - round(sigma_rel, 4)) > 1e-9 or not 0 <= sigma_rel < LARGEST_SIGMA_REL:
        raise ValueError(
            f"sigma_rel of a snapshot must be 0 (raw weights) or a number of at most 4 decimals below "
            f"12^-0.5 = {LARGEST_SIGMA_REL:.4f}, got {sigma_rel}"
        )
    if images < 0 or (images == 0 and sigma_rel > 0):
        raise ValueError(f"a snapshot needs a positive number of images, got {images}")
    return f"images-{images:012d}-sigma_rel-{sigma_rel:.4f}.safetensors"


def parse_file_names(folder: Path, names: Iterable[str]) -> list[Entry]:
    """Entries of those `names` that are snapshots in `folder`, sorted."""
    matches = ((name, _NAME.fullmatch(name)) for name in names)
    return sorted(Entry(int(match[1]), float(match[2]), folder / name) for name, match in matches if match)


def parse_images(images: int | float | str) -> int | Fraction:
    """A count of images as int, a fraction of the planned run in (0, 1] as Fraction.

    An int, '4096' and a whole float above 1 are counts; a float up to 1, '1.0', '0.25', '1/16' and '1/3.5' are
    fractions. A float stands for the simplest fraction near it, so that 0.3 of 1000 images are 300.

    Raises:
        ValueError: if `images` is neither.
    """
    wanted = (
        f"expected a count of images or a fraction of the planned run such as 0.25, '1/16' or '1/3.5', got {images!r}"
    )
    if isinstance(images, bool) or not isinstance(images, int | float | str):
        raise ValueError(wanted)
    if isinstance(images, int) or (isinstance(images, str) and images.strip().isdecimal()):
        if int(images) < 0:
            raise ValueError(wanted)
        return int(images)
    if isinstance(images, float) and images > 1 and images.is_integer():
        return int(images)
    numerator, _, denominator = str(images).partition("/")
    try:
        share = Fraction(numerator.strip()) / Fraction(denominator.strip() or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(wanted) from None
    if isinstance(images, float):
        share = share.limit_denominator(1_000_000)
    if not 0 < share <= 1:
        raise ValueError(wanted)
    return share


def fraction_images(fraction: float | str, planned_images: int) -> int:
    """floor(fraction * planned_images), exactly, and at least 1: where in a run a fraction lies.

    Raises:
        ValueError: if `fraction` is not a fraction in (0, 1] as `parse_images` reads it.
    """
    share = parse_images(fraction)
    if isinstance(share, int):
        raise ValueError(f"expected a fraction of the planned run such as 0.25, '1/16' or 1.0, got {fraction!r}")
    return max(1, math.floor(share * planned_images))


def named_count(
    images: int | float | str,
    planned_images: int | None,
    entries: Sequence[Entry],
    since: Callable[[Entry], int | None],
) -> int | None:
    """The stored count that `images`, a count or a fraction of the planned run, names; None if there is none.

    Averages move in steps of many images. A time within a step names the snapshot at the end of that step, as the
    callbacks store it, however long the step is: the first of `entries` (sorted) at or after it, if `since`, the images
    at the update before that snapshot, is earlier. A fraction also names a snapshot within 1 % of it, for files that do
    not record `since`.
    """
    count = parse_images(images)
    exact = isinstance(count, int)
    if not exact and planned_images is None:
        return None
    wanted = count if isinstance(count, int) else fraction_images(images, planned_images or 0)
    at_or_after = next((entry for entry in entries if entry.images >= wanted), None)
    if at_or_after is not None:
        before = wanted - 1 if at_or_after.images == wanted else since(at_or_after)
        if before is not None and before < wanted:
            return at_or_after.images
    if exact:
        return None
    nearest = min((entry.images for entry in entries), key=lambda stored: abs(stored - wanted), default=None)
    return nearest if nearest is not None and abs(nearest - wanted) <= 0.01 * wanted else None


def stored_exactly(entries: Sequence[Entry], images: int, sigma_rel: float) -> Entry | None:
    """The entry of that age and width, if there is one."""
    same = (e for e in entries if e.images == images and math.isclose(e.sigma_rel, sigma_rel, rel_tol=1e-9))
    return next(same, None)


def available(entries: Sequence[Entry]) -> str:
    """List of the stored snapshots for an error message."""
    if not entries:
        return "there are no snapshots"
    times = sorted({entry.images for entry in entries})
    widths = sorted({entry.sigma_rel for entry in entries})
    shown = [str(count) for count in times]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-3:]]
    widths_shown = ", ".join(f"{width:g}" for width in widths)
    return f"available: images {', '.join(shown)} ({len(times)} in all), sigma_rel {widths_shown}"
