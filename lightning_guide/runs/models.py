"""Models of runs: averages and raw weights from run folders, and the models that an evaluation resolves."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from lightning_guide.data import Prompts
from lightning_guide.denoiser import Denoiser
from lightning_guide.ema import Average
from lightning_guide.origin import Origin
from lightning_guide.runs.class_names import read_class_names
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.recipe import build
from lightning_guide.utils.shipped import how_to_train

__all__ = [
    "DryRunModels",
    "LiveAverages",
    "RunModels",
    "evaluated_images",
    "find_average",
    "finished_model",
    "newest_images",
    "open_snapshots",
    "pretrained",
    "raw_network",
]

Kind = TypeVar("Kind", bound=nn.Module)


def raw_network(run: str | Path, *, kind: type[Kind], what: str = "network") -> Kind:
    """Return the network of the newest raw weights (sigma_rel 0) of `run`, on the CPU.

    Raises:
        ValueError: if the run has no raw weights of a `kind`; `what` names the network in the message.
    """
    store = SnapshotStore(Path(run) / "snapshots")
    entries = [entry for entry in store.entries() if entry.sigma_rel == 0]
    if not entries:
        state = "holds no raw weights" if store.folder.is_dir() else f"does not exist{did_you_mean(store.folder)}"
        raise ValueError(
            f"no {what} in the run {str(run)!r}: {store.folder} {state}; expected the default_root_dir of a "
            f"finished fit of lightning_guide.modules.classifiers.ClassifierModule{how_to_train(run)}"
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
    place = Path(run).expanduser()
    folder = place / "snapshots"
    if not folder.is_dir():
        near = place if place.is_dir() else place.parent
        found = ", ".join(sorted(str(path.parent) for path in near.glob("*/snapshots"))) or "none"
        found += how_to_train(run)
        wrong = f"{folder} does not exist{did_you_mean(folder)}"
        raise ValueError(f"run {str(run)!r} has no snapshots: {wrong}; runs with snapshots: {found}")
    return SnapshotStore(folder)


def finished_model(
    run: str | Path,
    images: int | float | str | None = None,
    average: Average | float | str = 0.05,
    *,
    shared: Sequence[Denoiser] = (),
) -> Denoiser:
    """Return one average of a run after `images` (None: at its newest snapshot), frozen, on the CPU.

    Low-rank additions to a model in `shared` share its weights, where they are.

    `average` is a width sigma_rel, or "half_life" for that of `callbacks.HalfLifeEMA`, which has a store of its own.

    Raises:
        ValueError: if the run has no such snapshot.
    """
    chosen = Average.of(average)
    store = open_snapshots(Path(run) / chosen.folder)
    count = evaluated_images(run, images, chosen)
    width = chosen.sigma_rel
    if width is None:  # stored under the width that its profile had at that time
        width = next((entry.sigma_rel for entry in store.entries() if entry.images == count), 0.05)
    model = store.guider(images=count, sigma_rel=width, shared=shared)
    model.origin = Origin.of(model, str(run), images=count, sigma_rel=chosen.value)
    model.class_names = read_class_names(run)
    return model


def evaluated_images(run: str | Path, images: int | float | str | None, average: Average | float | str) -> int:
    """Return the images seen by the model that `finished_model` returns.

    Raises:
        ValueError: if the run has no such snapshot.
    """
    store = open_snapshots(Path(run) / Average.of(average).folder)
    return newest_images(store) if images is None else store.resolve_images(images)


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


@runtime_checkable
class LiveAverages(Protocol):
    """A callback that holds averages of the model while it trains."""

    @property
    def averages(self) -> Collection[Average]:
        """Averages that it tracks."""

    def live(self, average: Average) -> Denoiser:
        """Current state of one of them."""


def find_average(callbacks: Iterable[object], average: Average) -> LiveAverages:
    """Find the callback that holds `average`.

    Raises:
        ValueError: if none does.
    """
    holders = [each for each in callbacks if isinstance(each, LiveAverages)]
    if not holders:
        raise ValueError(
            f"average={average} is to be evaluated, but no callback keeps averages: "
            "add callbacks.PostHocEMA or set average to null"
        )
    tracked = [each for holder in holders for each in holder.averages]
    if average not in tracked:
        names = [each.value for each in tracked]
        raise ValueError(f"no average with sigma_rel={average} is tracked; tracked: {names}")
    return next(holder for holder in holders if average in holder.averages)


class RunModels:
    """The models of one evaluation: `main`, and snapshots of this or other runs, each loaded once."""

    def __init__(
        self,
        main: Denoiser,
        *,
        run: str | Path,
        device: torch.device,
        until: int | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        """Set the models and data of the evaluation.

        Args:
            main: the model under evaluation.
            run: folder of its run.
            device: that of the evaluation.
            until: images after which snapshots of the run do not exist yet.
            prompts: those of the evaluation, if the model takes embeddings.
        """
        self._main, self.prompts = main, prompts
        self.run, self.device, self.until = Path(run), device, until
        self._loaded: dict[tuple[str | None, int | float | str, float], Denoiser] = {}

    @property
    def main(self) -> Denoiser:
        """The model under evaluation."""
        return self._main

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """That average, read or rebuilt, on the device of the evaluation.

        Raises:
            SnapshotMissing: if there is no such snapshot; with `not_yet` if it may still be stored.
            ValueError: if the run does not exist.
        """
        key = (run, images, sigma_rel)
        if key not in self._loaded:
            if run is None:
                store, until = SnapshotStore(self.run / "snapshots"), self.until
            else:
                store, until = open_snapshots(run), None
            models = (self._main, *self._loaded.values())
            shared = [base for model in models if (base := model.unadapted) is not None]
            model = store.guider(images=images, sigma_rel=sigma_rel, until=until, shared=shared)
            source = str(self.run if run is None else run)
            model.origin = Origin.of(model, source, images=store.resolve_images(images, until), sigma_rel=sigma_rel)
            self._loaded[key] = model.to(self.device)  # a wait for each weight, when it is read
        return self._loaded[key]


class DryRunModels:
    """Dry-run resolver used before training: snapshots of other runs must exist, those of this run need not."""

    def __init__(self, main: Denoiser, run: str | Path, *, device: torch.device | str = "cpu") -> None:
        """A copy of `main`, with its weights, takes the place of every snapshot of `run`; others go to `device`."""
        self._main, self.run, self.prompts = main, Path(run), None
        self._others = RunModels(main, run=run, device=torch.device(device))

    @property
    def main(self) -> Denoiser:
        """The model that will be trained."""
        return self._main

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """The average of another run; of this one the model itself, as another object.

        Raises:
            ValueError: if the other run does not exist, or has no such snapshot.
        """
        if run is None or Path(run).expanduser().resolve() == self.run.resolve():
            return copy.copy(self._main)
        return self._others.snapshot(run=run, images=images, sigma_rel=sigma_rel)
