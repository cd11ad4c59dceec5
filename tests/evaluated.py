"""Evaluations of a tiny finished run, and a record of their results and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from callbacks import PostHocEMA
from lightning_guide.evaluation.evaluation import Evaluation
from tests.runs import TinyImages, tiny_module, tiny_trainer


class Log(pl.Callback):
    """Records the results at the end of each validation or test, and the outputs of each step."""

    def __init__(self) -> None:
        self.results: list[dict[str, dict[str, float]]] = []
        self.skipped: list[dict[str, str]] = []
        self.outputs: list[tuple[int, Any]] = []

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.results.append(module.evaluations.results)
        self.skipped.append(module.evaluations.skipped)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.outputs.append((dataloader_idx, outputs))

    on_test_end, on_test_batch_end = on_validation_end, on_validation_batch_end


def finished_run(folder: Path) -> Path:
    """Train a run with averages at 8, 16, 24 and 32 of 32 images."""
    trainer = tiny_trainer(folder, PostHocEMA(8), steps=8)
    trainer.fit(tiny_module(average=None, learning_rate=None), datamodule=TinyImages())
    return folder


def evaluate(folder: Path, evaluations: dict[str, Evaluation], verb: str = "test", **options: Any) -> Log:
    """Run the trainer's `verb` on a finished run."""
    log = Log()
    data = options.pop("data", None) or TinyImages()
    trainer = tiny_trainer(folder, log, limit_val_batches=1.0)
    getattr(trainer, verb)(tiny_module(evaluations=evaluations, **options), datamodule=data, verbose=False)
    return log
