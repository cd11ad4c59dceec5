"""Post-hoc EMA reconstruction: the combination of stored averages for a target, summed in one pass over the files.

Karras et al., EDM2, section 3.2 and algorithm 3, https://arxiv.org/abs/2312.02696; the math is in `ema`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_guide.ema import profile_error, reconstruction_weights
from lightning_guide.snapshots.file import Metadata
from lightning_guide.snapshots.names import Entry, SnapshotMissing, available
from lightning_guide.snapshots.selection import useful_profiles
from lightning_guide.utils.recipe import equivalent

__all__ = ["MAX_ERROR", "Rebuilt", "weighted_sums", "reconstruction_shares"]


MAX_ERROR = 0.05  # profile error up to which a rebuilt average serves


Rebuilt = tuple[dict[str, Tensor], Metadata]


def reconstruction_shares(
    averages: Sequence[Entry], images: int, sigma_rel: float, max_error: float
) -> dict[Entry, float]:
    """The weight x_i of each average in the target (images, sigma_rel); they sum to 1.

    Of many averages a bounded number is used (`useful_profiles`), so that few files are read.

    Raises:
        SnapshotMissing: if no average is early enough, or if the profile error exceeds `max_error`.
        ValueError: if `sigma_rel` is outside (0, 12^-0.5).
    """
    earlier = [entry for entry in averages if entry.images <= images]
    if not earlier:
        raise SnapshotMissing(
            f"no average was stored at or before images={images}; {available(averages)}", not_yet=False
        )
    chosen = useful_profiles([(entry.images, entry.sigma_rel) for entry in earlier], (images, sigma_rel))
    earlier = [earlier[number] for number in chosen]
    stored = [(entry.images, entry.sigma_rel) for entry in earlier]
    error = profile_error(stored, (images, sigma_rel))
    if error > max_error:
        times, widths = len({t for t, _ in stored}), sorted({s for _, s in stored})
        raise SnapshotMissing(
            f"images={images}, sigma_rel={sigma_rel:g} cannot be rebuilt well enough: from the {len(stored)} "
            f"averages ({times} times) stored up to there its profile error is {error:.1%}, "
            f"above max_error={max_error:g}; "
            f"{_remedy(images, widths, sigma_rel, max_error)}; {available(averages)}",
            not_yet=False,
        )
    weights = reconstruction_weights(stored, [(images, sigma_rel)])[:, 0].tolist()
    return {entry: weight for entry, weight in zip(earlier, weights, strict=True) if weight != 0}


def weighted_sums(load: Callable[[Entry], Rebuilt], targets: Sequence[Mapping[Entry, float]]) -> list[Rebuilt]:
    """sum_i x_i theta_i for every target, given as its shares x_i; `load` is called once for each file needed.

    Sums are float32, or of the stored type if that is wider; a single share of 1 gives the stored values
    exactly. Buffers and metadata are those of the newest input.

    Raises:
        ValueError: if the files of one target belong to different networks; whatever `load` raises.
    """
    sums: list[Rebuilt | None] = [None] * len(targets)
    for entry in sorted({entry for target in targets for entry in target}):
        stored, metadata = load(entry)
        averaged = [name for name in stored if name not in metadata.buffers]
        wide = [stored[name].to(torch.promote_types(stored[name].dtype, torch.float32)) for name in averaged]
        for number, target in enumerate(targets):
            if entry not in target:
                continue
            previous = sums[number]
            tensors = {name: tensor.clone() for name, tensor in stored.items() if name in metadata.buffers}
            if previous is None:
                tensors.update(zip(averaged, torch._foreach_mul(wide, target[entry]), strict=True))
            else:
                _check_same_network(entry, previous, (stored, metadata))
                total = [previous[0][name] for name in averaged]
                torch._foreach_add_(total, wide, alpha=target[entry])
                tensors.update(zip(averaged, total, strict=True))
            sums[number] = {name: tensors[name] for name in stored}, metadata
    return [total for total in sums if total is not None]


def _check_same_network(entry: Entry, previous: Rebuilt, current: Rebuilt) -> None:
    """Raise ValueError if two inputs of one sum differ in recipe, names or shapes."""
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors, _ in (previous, current)]
    if shapes[0] != shapes[1] or not equivalent(previous[1].recipe, current[1].recipe):
        raise ValueError(
            f"{entry.path} and the snapshot of images={previous[1].images} before it belong to different networks "
            "and cannot be averaged; keep one run in one folder"
        )


def _remedy(images: int, widths: Sequence[float], sigma_rel: float, max_error: float) -> str:
    """How many evenly spaced snapshot times of the same averages would have been enough."""
    named = " and ".join(f"{width:g}" for width in widths)
    for times in (4, 8, 16, 32, 64, 128):
        evenly = [((i + 1) / times, width) for i in range(times) for width in widths]
        if profile_error(evenly, (1.0, sigma_rel)) <= max_error:
            return f"{times} times spaced evenly up to {images}, each with sigma_rel {named}, would be enough"
    return f"even 128 times with sigma_rel {named} would not be enough: store an average nearer to this one"
