"""Models out of run folders: averages, raw weights, and the newest of them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.ema import Average
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.recipe import build

__all__ = ["finished_model", "newest_images", "open_snapshots", "pretrained", "raw_network"]

Kind = TypeVar("Kind", bound=nn.Module)


def raw_network(run: str | Path, *, kind: type[Kind], what: str = "network") -> Kind:
    """Return the network of the newest raw weights (sigma_rel 0) of `run`, on the CPU.

    Raises:
        ValueError: if the run has no raw weights of a `kind`; `what` names the network in the message.
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


def open_snapshots(run: str | Path) -> SnapshotStore:
    """Open the snapshot store of a run.

    Raises:
        ValueError: if the run has none.
    """
    folder = Path(run) / "snapshots"
    if not folder.is_dir():
        near = Path(run) if Path(run).is_dir() else Path(run).parent
        found = ", ".join(sorted(str(path.parent) for path in near.glob("*/snapshots"))) or "none"
        raise ValueError(f"run {str(run)!r} has no snapshots: {folder} does not exist; runs with snapshots: {found}")
    return SnapshotStore(folder)


def finished_model(
    run: str | Path, images: int | float | str | None = None, average: Average | float | str = 0.05
) -> Denoiser:
    """Return one average of a run after `images` (None: at its newest snapshot), frozen, on the CPU.

    `average` is a width sigma_rel, or "half_life" for that of `callbacks.HalfLifeEMA`, which has a store of its own.

    Raises:
        ValueError: if the run has no such snapshot.
    """
    chosen = Average.of(average)
    store = open_snapshots(Path(run) / chosen.folder)
    count = newest_images(store) if images is None else store.resolve_images(images)
    width = chosen.sigma_rel
    if width is None:  # stored under the width that its profile had at that time
        width = next((entry.sigma_rel for entry in store.entries() if entry.images == count), 0.05)
    return store.guider(images=count, sigma_rel=width)


def newest_images(store: SnapshotStore) -> int:
    """Images seen by the newest averages of a run.

    Raises:
        ValueError: if it has none.
    """
    entries = [entry for entry in store.entries() if entry.sigma_rel > 0]
    if not entries:
        raise ValueError(f"run {str(store.folder.parent)!r} has no averaged snapshots yet in {store.folder}")
    return entries[-1].images


def pretrained(run: str, images: int | float | str | None = None, sigma_rel: float = 0.05) -> Denoiser:
    """Return the average `sigma_rel` of a run after `images` (None: at its newest snapshot), trainable.

    A copy: the run stays as it is. In configs: `denoiser: {class_path: lightning_guide.runs.pretrained}`.

    Raises:
        ValueError: if the run has no such snapshot.
    """
    return finished_model(run, images, sigma_rel).requires_grad_(True).train()
