"""Strips of images: one row of samples for each round of gradient-guided optimization."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.output import image_grid, output_folder, save_image
from lightning_guide.data import data_of
from lightning_guide.evaluation.sampling_loop import DrawnSamples

__all__ = ["RoundStrips"]


class RoundStrips(pl.Callback):
    """Image of the first samples of the rounds of gradient guidance, one row for each: `report/rounds.png` of the run.

    With rounds that share their noise (`redraw: false`) a column shows how one sample changes. In loggers the
    image is `rounds/samples`. After a resume it shows only rounds drawn since, in a test the samples of process 0.
    """

    def __init__(self, columns: int = 10, every: int = 1) -> None:
        """Configure the number of samples (`columns`) and the rounds shown (each `every`-th).

        Raises:
            ValueError: if either is below 1.
        """
        super().__init__()
        if columns < 1 or every < 1:
            raise ValueError(f"RoundStrips needs columns >= 1 and every >= 1, got {columns} and {every}")
        self.columns, self.every = columns, every
        self._rows: dict[int, list[Tensor]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard earlier samples."""
        self._rows = {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first samples of a round."""
        assert isinstance(outputs, DrawnSamples)
        row = self._rows.setdefault(dataloader_idx, [])
        missing = self.columns - sum(map(len, row))
        if missing > 0 and dataloader_idx % self.every == 0:
            row.append(outputs.x[:missing].cpu())  # waits: the image is made on the host

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard earlier samples."""
        self._rows = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the first samples of the round before this step, on process 0."""
        samples, number = pl_module.rounds.samples, pl_module.rounds.round - 1
        if trainer.is_global_zero and samples is not None and number not in self._rows and number % self.every == 0:
            self._rows[number] = [data_of(trainer).decode(samples[: self.columns].to(pl_module.device)).cpu()]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the image, as in a test."""
        self.on_test_end(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the image, if the samples are images."""
        rows = [torch.cat(row) for _, row in sorted(self._rows.items()) if row]
        if not trainer.is_global_zero or not rows or rows[0].ndim != 4:
            return
        image = image_grid(torch.cat(rows), len(rows[0]))
        save_image(trainer, image, output_folder(trainer, None) / "rounds.png", tag="rounds/samples")
