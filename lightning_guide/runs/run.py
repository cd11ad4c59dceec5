"""The network that a run has trained and stored as raw weights: classifiers, and whatever else judges or steers.

Runs of one snapshot from elsewhere: nothing to train on, but they sample, are evaluated, and guide others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.recipe import build

__all__ = [
    "check_new",
    "finished_model",
    "newest_images",
    "open_snapshots",
    "pretrained",
    "raw_network",
    "write_averages",
    "write_run",
]


Kind = TypeVar("Kind", bound=nn.Module)


def raw_network(run: str | Path, *, kind: type[Kind], what: str = "network") -> Kind:
    """The network of the newest snapshot of `run` without averaging (sigma_rel 0), with its weights, on the CPU.

    Raises:
        ValueError: if the run has no such snapshot, saying `what` was looked for, or it holds no `kind`.
    """
    store = SnapshotStore(Path(run) / "snapshots")
    entries = [entry for entry in store.entries() if entry.sigma_rel == 0]
    if not entries:
        state = "holds no raw weights" if store.folder.is_dir() else "does not exist"
        raise ValueError(
            f"no {what} in the run {str(run)!r}: {store.folder} {state}; expected the default_root_dir of a "
            "finished fit of lightning_guide.modules.classifiers.ClassifierModule"
        )
    tensors, metadata = store.load(entries[-1])
    with torch.random.fork_rng(devices=[]):
        network = build(metadata.recipe)
    if not isinstance(network, kind):
        raise ValueError(f"{entries[-1].path} holds a {type(network).__name__}; expected a {kind.__name__}")
    network.load_state_dict(tensors)
    return network


def check_new(run: str | Path) -> None:
    """Refuses the folder of a run that exists.

    Raises:
        ValueError: naming it.
    """
    if (Path(run) / "snapshots").exists():
        raise ValueError(f"{run} already holds a run; expected the folder of a new one")


def write_run(
    run: str | Path,
    denoiser: Denoiser,
    tensors: Mapping[str, Tensor],
    *,
    images: int,
    sigma_rel: float,
    planned_images: int | None,
) -> Path:
    """Writes `tensors` of `denoiser` as the only snapshot of a new run, and a config for sampling; returns the file.

    The tensors keep the type of the first of them.
    """
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    path = SnapshotStore(Path(run) / "snapshots", dtype=dtype).save(
        tensors,
        images=images,
        sigma_rel=sigma_rel,
        recipe=denoiser.recipe,
        planned_images=planned_images,
        buffers=[name for name, _ in denoiser.named_buffers()],
    )
    config = _config(denoiser, Path(run), sigma_rel)
    (Path(run) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def _config(denoiser: Denoiser, run: Path, sigma_rel: float) -> dict[str, Any]:
    """A config by which the run can be sampled and evaluated."""
    heun = {
        "class_path": "lightning_guide.samplers.Heun",
        "init_args": {"grid": {"class_path": "lightning_guide.noise.KarrasGrid", "init_args": {"num_steps": 32}}},
    }
    evaluation = {"num_samples": 64, "batch_size": 16, "sampler": heun}
    shape = {"data_shape": list(denoiser.data_shape), "num_classes": denoiser.num_classes}
    shape |= {"token_channels": denoiser.token_channels} if denoiser.token_channels else {}
    loss = {"class_path": "EDMLoss", "init_args": {"noise": {"class_path": "lightning_guide.noise.LogNormal"}}}
    arguments = {
        "denoiser": denoiser.recipe,
        "loss": loss,
        "average": sigma_rel,
        "evaluations": {"unguided": evaluation},
        "prediction": evaluation,
    }
    return {
        "trainer": {"default_root_dir": str(run)},
        "model": {"class_path": "DiffusionModule", "init_args": arguments},
        "data": {"class_path": "datamodules.NoData", "init_args": shape},
    }


def open_snapshots(run: str | Path) -> SnapshotStore:
    """The snapshots of a run.

    Raises:
        ValueError: if the run has none.
    """
    folder = Path(run) / "snapshots"
    if not folder.is_dir():
        near = Path(run) if Path(run).is_dir() else Path(run).parent
        found = ", ".join(sorted(str(path.parent) for path in near.glob("*/snapshots"))) or "none"
        raise ValueError(f"run {str(run)!r} has no snapshots: {folder} does not exist; runs with snapshots: {found}")
    return SnapshotStore(folder)


def finished_model(run: str | Path, images: int | float | str | None, sigma_rel: float | str) -> Denoiser:
    """The average `sigma_rel` of a run after `images`; None: at its newest snapshot.

    A name in the place of `sigma_rel`, "half_life", is the folder of one average that is stored apart.

    Raises:
        ValueError: if the run has no such snapshot.
    """
    if isinstance(sigma_rel, str):
        apart = open_snapshots(Path(run) / sigma_rel)
        count = newest_images(apart) if images is None else apart.resolve_images(images)
        widths = [entry.sigma_rel for entry in apart.entries() if entry.images == count]
        return apart.guider(images=count, sigma_rel=widths[0] if widths else 0.05)
    store = open_snapshots(run)
    return store.guider(images=newest_images(store) if images is None else images, sigma_rel=sigma_rel)


def newest_images(store: SnapshotStore) -> int:
    """Age of the newest averages of a run, in images.

    Raises:
        ValueError: if it has none.
    """
    entries = [entry for entry in store.entries() if entry.sigma_rel > 0]
    if not entries:
        raise ValueError(f"run {str(store.folder.parent)!r} has no averaged snapshots yet in {store.folder}")
    return entries[-1].images


def pretrained(run: str, images: int | float | str | None = None, sigma_rel: float = 0.05) -> Denoiser:
    """The average `sigma_rel` of a run after `images` (None: at its newest snapshot), to be trained further.

    A copy: what is trained from it leaves the run alone. For configs: `denoiser: {class_path: ...pretrained}`.

    Raises:
        ValueError: if the run has no such snapshot.
    """
    return finished_model(run, images, sigma_rel).requires_grad_(True).train()


def write_averages(
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
