"""Runs on several ranks for tests, and a record of what each rank observed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from callbacks import PostHocEMA
from lightning_guide.denoiser import Denoiser
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.losses import EDMLoss, LossTerms
from tests import runs

STEPS = 8
TRAIN = ("tests.ranks", "train")


def options(world: int) -> dict[str, Any]:
    """Return trainer options; `strategy` is that of configs/ddp.yaml."""
    if world == 1:
        return {}
    strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False, gradient_as_bucket_view=True)
    return {"devices": world, "strategy": strategy}


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


class Notes(pl.Callback):
    """Records the data and the image counts of this rank, and sends it a signal at one micro-step."""

    def __init__(self, signal_at: int | None = None, number: int = signal.SIGTERM) -> None:
        self.signal_at, self.number = signal_at, number
        self.data: list[Tensor] = []
        self.images: list[int] = []
        self.micro_steps = self.validated = 0
        self.in_validation = False

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, *args: Any) -> None:
        self.data.append(batch.x)
        self.micro_steps += 1
        if self.micro_steps == self.signal_at:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_end(self, *args: Any) -> None:
        if self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_validation_end(self, *args: Any) -> None:
        self.validated += 1

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.images.append(module.images_seen)


class Draws(EDMLoss):
    """Records the noise of training."""

    noise_seen: list[Tensor] = []

    def at(self, denoiser: Denoiser, clean: Tensor, condition: Any, sigma: Tensor, noise: Tensor) -> LossTerms:
        terms = super().at(denoiser, clean, condition, sigma, noise)
        if terms.objective.requires_grad:
            Draws.noise_seen.append(torch.cat([sigma, noise.flatten()]))
        return terms


def train(
    folder: str,
    world: int,
    *,
    steps: int = STEPS,
    signal_rank: int = -1,
    validation_rank: int = -1,
    dies: bool = False,
    batch: int = 4,
) -> None:
    """Train a full run on `world` ranks; rank `signal_rank` gets SIGTERM in step 2, or SIGKILL in step 5.

    Rank `validation_rank` gets SIGTERM in the first validation.
    """
    runs.EDMLoss = Draws  # type: ignore[misc]
    runs.TinyImages.__init__.__kwdefaults__["batch_size"] = batch  # type: ignore[index]
    saved: list[str] = []
    save = SnapshotStore.save

    def noting(store: SnapshotStore, *args: Any, **kwargs: Any) -> Path:
        saved.append(f"{kwargs['images']}")
        return save(store, *args, **kwargs)

    SnapshotStore.save = noting  # type: ignore[method-assign]
    hit = rank() == signal_rank
    notes = Notes(9, signal.SIGKILL) if hit and dies else Notes(3 if hit else None)
    notes.in_validation = rank() == validation_rank
    module = runs.full_run(folder, steps=steps, callbacks=[notes], **options(world))
    callbacks: list[pl.Callback] = module.trainer.callbacks  # type: ignore[attr-defined]
    (averages,) = (callback for callback in callbacks if isinstance(callback, PostHocEMA))
    seen = {
        "average": dict(averages.live(0.05).state_dict()),
        "data": notes.data,
        "images": notes.images,
        "noise": Draws.noise_seen,
        "saved": saved,
        "validated": notes.validated,
        "weights": dict(module.state_dict()),
        "results": module.evaluations.results,
    }
    torch.save(seen, Path(folder) / f"seen-{rank()}.pt")


def seen(folder: Path, world: int = 2) -> list[dict[str, Any]]:
    return [torch.load(folder / f"seen-{r}.pt", weights_only=True) for r in range(world)]
