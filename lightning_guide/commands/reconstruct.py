"""Post-hoc reconstruction as a command: averages of any width and age out of the snapshots of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_guide.modules.models import open_snapshots
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots.post_hoc import MAX_ERROR

__all__ = ["rebuild", "reconstruct"]


def reconstruct(
    run: str,
    sigma_rels: list[float],
    *,
    images: list[int | float | str] | None = None,
    out: str | None = None,
    max_error: float = MAX_ERROR,
) -> list[str]:
    """Rebuilds averages of the model in `run`, all in one pass over its snapshots.

    Args:
        run: folder of the run.
        sigma_rels: relative widths wanted.
        images: ages wanted, counts or fractions of the planned run such as "1/16"; default the newest.
        out: where they go, as a run of its own; default RUN/reconstructed.
        max_error: largest relative error of the averaging profile that is accepted.

    Returns:
        The files written.

    Raises:
        ValueError: if no width is named, or the run, an age, or enough snapshots for a width are missing.
    """
    if not sigma_rels:
        raise ValueError("no sigma_rel to rebuild was named; expected a list of widths such as '[0.03, 0.07]'")
    source = open_snapshots(run)
    entries = [entry for entry in source.entries() if entry.sigma_rel > 0]
    if not entries:
        raise ValueError(f"run {run!r} has no averaged snapshots in {source.folder}")
    ages = [source.resolve_images(age) for age in images] if images else [entries[-1].images]
    targets = [(age, width) for age in ages for width in sigma_rels]
    return [str(path) for path in rebuild(source, targets, out or f"{run}/reconstructed", max_error=max_error)]


def rebuild(
    source: SnapshotStore, targets: Sequence[tuple[int, float]], run: str | Path, *, max_error: float
) -> list[Path]:
    """Writes the averages `targets`, (images, sigma_rel), of `source` to the folder `run`; reads each file once.

    Raises:
        ValueError: if there are not enough snapshots for one of them.
    """
    recipe = source.load([entry for entry in source.entries() if entry.sigma_rel > 0][-1])[1]
    store = SnapshotStore(Path(run) / "snapshots")
    files = []
    for (images, sigma_rel), tensors in zip(targets, source.reconstruct(targets, max_error=max_error), strict=True):
        path = store.save(
            tensors,
            images=images,
            sigma_rel=sigma_rel,
            recipe=recipe.recipe,
            planned_images=recipe.planned_images,
            buffers=recipe.buffers,
        )
        print(f"sigma_rel {sigma_rel:g} after {images} images: {path}")
        files.append(path)
    return files
