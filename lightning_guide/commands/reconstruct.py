"""The command reconstruct: averages of any width and age from the snapshots of a run."""

from __future__ import annotations

from lightning_guide.runs.stores import open_snapshots
from lightning_guide.runs.writing import write_averages
from lightning_guide.snapshots.post_hoc import MAX_ERROR

__all__ = ["reconstruct"]


def reconstruct(
    run: str,
    sigma_rels: list[float],
    *,
    images: list[int | float | str] | None = None,
    out: str | None = None,
    max_error: float = MAX_ERROR,
) -> list[str]:
    """Rebuild averages of the model in `run`, all in one pass over its snapshots.

    Args:
        run: folder of the run.
        sigma_rels: relative widths wanted.
        images: ages wanted, counts or fractions of the planned run such as "1/16"; default the newest.
        out: folder of a new run that holds them; default RUN/reconstructed.
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
    return [str(path) for path in write_averages(source, targets, out or f"{run}/reconstructed", max_error=max_error)]
