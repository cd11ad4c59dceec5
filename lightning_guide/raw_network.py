"""The network that a run has trained and stored as raw weights: classifiers, and whatever else judges or steers."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lightning_guide.recipe import build
from lightning_guide.snapshots import SnapshotStore

__all__ = ["raw_network"]

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
            "finished fit of lightning_guide.modules.classifier.ClassifierModule"
        )
    tensors, metadata = store.load(entries[-1])
    with torch.random.fork_rng(devices=[]):
        network = build(metadata.recipe)
    if not isinstance(network, kind):
        raise ValueError(f"{entries[-1].path} holds a {type(network).__name__}; expected a {kind.__name__}")
    network.load_state_dict(tensors)
    return network
