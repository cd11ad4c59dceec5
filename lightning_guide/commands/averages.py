"""The commands reconstruct and neon: new averages from the snapshots of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lightning_guide.guidance.negatives.neon import extrapolate
from lightning_guide.pretrained.source import is_published, load
from lightning_guide.runs.models import newest_images, open_snapshots
from lightning_guide.runs.writing import write_averages
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots.post_hoc import MAX_ERROR
from lightning_guide.utils.files import atomic
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.modules import persistent_buffers
from lightning_guide.utils.run_places import LOCK

__all__ = ["neon", "reconstruct"]


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


def neon(
    base: str,
    auxiliary: str,
    *,
    out: str | None = None,
    weight: float = 2.0,
    base_images: int | float | str | None = None,
    base_sigma_rel: float = 0.05,
    auxiliary_images: int | float | str | None = None,
    auxiliary_sigma_rel: float = 0.05,
) -> str:
    """Write theta_aux + w (theta_base - theta_aux) as an ordinary snapshot: guidance without extra evaluations.

    Its age and width are those of the base, or of the auxiliary if the base is published; buffers are the base's.
    https://arxiv.org/abs/2510.03597; omega is w - 1.

    Args:
        base: folder of the base run, or a published model, KIND:PLACE.
        auxiliary: folder of the run that was trained on samples of the base.
        out: folder of the new run; default BASE/neon.
        weight: w; 1 is the base.
        base_images: age of the base; default its newest snapshot.
        base_sigma_rel: width of its average.
        auxiliary_images: age of the auxiliary, its budget; default its newest snapshot.
        auxiliary_sigma_rel: width of its average.

    Returns:
        The file written.

    Raises:
        ValueError: if a run or snapshot is missing, the architectures differ, or the new run has snapshots already.
    """
    if not math.isfinite(weight):
        raise ValueError(f"Neon needs a finite weight, 1 is the base, got {weight}")
    folder = Path(out or f"{base}/neon")
    target = SnapshotStore(folder / "snapshots")
    with FolderLock(folder / LOCK, what=f"the run {folder}"):
        if target.entries():
            raise ValueError(f"{folder} has snapshots already; expected a folder without them")
        store = open_snapshots(auxiliary)
        auxiliary_age = newest_images(store) if auxiliary_images is None else store.resolve_images(auxiliary_images)
        age, width, origin = auxiliary_age, auxiliary_sigma_rel, store
        if not is_published(base):
            origin, width = open_snapshots(base), base_sigma_rel
            age = newest_images(origin) if base_images is None else origin.resolve_images(base_images)
        theta = load(base) if is_published(base) else origin.guider(images=age, sigma_rel=width)
        theta_aux = store.guider(images=auxiliary_age, sigma_rel=auxiliary_sigma_rel)
        merged = extrapolate(theta, theta_aux, weight)
        path = target.save(
            merged.state_dict(),
            images=age,
            sigma_rel=width,
            recipe=merged.recipe,
            planned_images=origin.planned_images,
            buffers=persistent_buffers(merged),
        )
        made_of = {
            "base": {"run": base} | ({} if is_published(base) else {"images": age, "sigma_rel": width}),
            "auxiliary": {"run": auxiliary, "images": auxiliary_age, "sigma_rel": auxiliary_sigma_rel},
            "weight": weight,
        }
        with atomic(folder / "neon.json") as temporary:
            temporary.write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")
    print(f"Neon of {base} and {auxiliary} at w = {weight:g}: {path}")
    return str(path)
