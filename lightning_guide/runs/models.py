"""Models of an evaluation: averages of a running training, and snapshots on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.ema import Average
from lightning_guide.runs.stores import open_snapshots
from lightning_guide.snapshots import SnapshotStore

__all__ = ["LiveAverages", "DryRunModels", "RunModels", "find_average"]


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

    def __init__(self, main: Denoiser, *, run: str | Path, device: torch.device, until: int | None = None) -> None:
        """`run` is the folder of the run under evaluation; its snapshots later than `until` images do not exist yet."""
        self._main = main
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
            self._loaded[key] = store.guider(images=images, sigma_rel=sigma_rel, until=until).to(self.device)
        return self._loaded[key]


class DryRunModels:
    """Dry-run resolver used before training: snapshots of other runs must exist, those of this run need not."""

    def __init__(self, main: Denoiser, run: str | Path) -> None:
        """`main` takes the place of every snapshot of `run`."""
        self._main, self.run = main, Path(run)

    @property
    def main(self) -> Denoiser:
        """The model that will be trained."""
        return self._main

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """The average of another run; of this one the model itself.

        Raises:
            ValueError: if the other run does not exist, or has no such snapshot.
        """
        if run is None or Path(run).resolve() == self.run.resolve():
            return self._main
        return open_snapshots(run).guider(images=images, sigma_rel=sigma_rel)
