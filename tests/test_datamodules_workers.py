"""Loader workers of validations start once in a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from datamodules.examples import TensorExamples
from tests.runs import TinyImages, tiny_module, tiny_trainer


class OnDisk(TinyImages):
    """Held-out images that need a worker."""

    def heldout(self) -> TensorExamples:
        examples = super().heldout()
        examples.in_memory = False
        return examples


class Workers(pl.Callback):
    """Notes the processes that load held-out data, in each validation."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        loaders: Any = trainer.val_dataloaders
        self.seen.append([worker.pid for worker in loaders[0]._iterator._workers])


def test_validations_of_a_fit_share_their_workers(tmp_path: Path) -> None:
    workers = Workers()
    trainer = tiny_trainer(tmp_path, workers, steps=4, limit_val_batches=1.0, val_check_interval=2)
    trainer.fit(tiny_module(average=None), datamodule=OnDisk(num_workers=1))
    first, second = workers.seen
    assert len(first) == 1 and first == second
