"""New run folders made of finished models: imported, downloaded, reconstructed; they sample, are evaluated, guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.files import atomic
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.modules import persistent_buffers
from lightning_guide.utils.needs import check_writable
from lightning_guide.utils.run_places import LOCK
from lightning_guide.utils.terminal import counted

__all__ = ["check_new", "report_callbacks", "write_averages", "write_config", "write_run"]


def check_new(run: str | Path) -> None:
    """Refuse the folder of a run that exists, or that cannot be written.

    Raises:
        ValueError: naming it.
    """
    if (Path(run) / "snapshots").exists():
        raise ValueError(f"{run} already holds a run; expected the folder of a new one")
    check_writable(run, "the new run")


def write_run(
    run: str | Path,
    denoiser: Denoiser,
    tensors: Mapping[str, Tensor],
    *,
    images: int,
    sigma_rel: float,
    planned_images: int | None,
    latents: Mapping[str, Any] | None = None,
) -> Path:
    """Write `tensors` of `denoiser` as the only snapshot of a new run, with a config for sampling; returns the file.

    The tensors keep the type of the first of them. `latents`: config of vae, mean and std of latents.
    """
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    with FolderLock(Path(run) / LOCK, what=f"the run {run}"):
        path = SnapshotStore(Path(run) / "snapshots", dtype=dtype).save(
            tensors,
            images=images,
            sigma_rel=sigma_rel,
            recipe=denoiser.recipe,
            planned_images=planned_images,
            buffers=persistent_buffers(denoiser),
        )
        write_config(run, _config(denoiser, Path(run), sigma_rel, latents or {}))
    return path


def write_config(run: str | Path, config: Mapping[str, Any]) -> Path:
    """Write the config of a run, with parts that are used twice written twice; returns the file."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    path = Path(run) / "config.yaml"
    with atomic(path) as temporary:
        temporary.write_text(
            yaml.dump(dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return path


def _config(denoiser: Denoiser, run: Path, sigma_rel: float, latents: Mapping[str, Any]) -> dict[str, Any]:
    """Config with which the run can be sampled and evaluated."""
    sampler = {"class_path": "Heun", "init_args": {"grid": 32}}  # steps of the model's own grid
    evaluation = {"num_samples": 64, "batch_size": 16, "sampler": sampler}
    shape = {"data_shape": list(denoiser.data_shape), "num_classes": denoiser.num_classes}
    shape |= {"token_channels": denoiser.token_channels} if denoiser.token_channels else {}
    arguments = {
        "denoiser": denoiser.recipe,
        "average": sigma_rel,
        "evaluations": {"unguided": evaluation},
        "prediction": evaluation,
    }
    return {
        "trainer": {"default_root_dir": str(run), "callbacks": report_callbacks(denoiser.data_shape)},
        "model": {"class_path": "DiffusionModule", "init_args": arguments},
        "data": {"class_path": "NoData", "init_args": shape | dict(latents)},
    }


def report_callbacks(shape: Sequence[int], *, motions: bool = False) -> list[dict[str, Any]]:
    """Return what draws and reports evaluations of data of `shape`: images, or paths of motions; metrics; the page."""
    images: list[dict[str, Any]] = [
        {"class_path": "SampleGrid", "init_args": {"count": 8, "columns": 4}},
        {"class_path": "Gallery", "init_args": {"count": 4}},
    ]
    shown = images if len(shape) == 3 else [{"class_path": "MotionFigure"}] if motions else []
    return [*shown, {"class_path": "MetricsReport"}, {"class_path": "RunReport"}]


def write_averages(
    source: SnapshotStore, targets: Sequence[tuple[int, float]], run: str | Path, *, max_error: float
) -> list[Path]:
    """Write the averages `targets`, (images, sigma_rel), of `source` to the folder `run`; reads each file once.

    Raises:
        ValueError: if there are not enough snapshots for one of them.
    """
    averages = [entry for entry in source.entries() if entry.sigma_rel > 0]
    recipe = source.load(averages[-1])[1]
    since = {entry.images: source.since(entry) for entry in averages}
    store = SnapshotStore(Path(run) / "snapshots")
    files = []
    with FolderLock(Path(run) / LOCK, what=f"the run {run}"):
        for (images, sigma_rel), tensors in zip(targets, source.reconstruct(targets, max_error=max_error), strict=True):
            path = store.save(
                tensors,
                images=images,
                sigma_rel=sigma_rel,
                recipe=recipe.recipe,
                planned_images=recipe.planned_images,
                buffers=recipe.buffers,
                since=since.get(images),
            )
            print(f"sigma_rel {sigma_rel:g} after {counted(images, 'image')}: {path}")
            files.append(path)
    return files
