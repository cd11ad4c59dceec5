"""Strips of pictures: a row of the same samples for each round of gradient guidance."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.output import image_grid, log_image, output_folder, write_png
from lightning_guide.evaluation.sampling_loop import DrawnSamples

__all__ = ["RoundStrips"]


class RoundStrips(pl.Callback):
    """Writes `report/rounds.png` in the folder of the run: the first samples of a test's rounds, one row each.

    With rounds that share their noise (`redraw: false`) a column shows one sample on its way. TensorBoard gets the
    picture as `rounds/samples`. Process 0 shows what it has drawn itself; a run that was continued shows what it drew
    since.
    """

    def __init__(self, columns: int = 10, every: int = 1) -> None:
        """`columns` samples of each `every`-th round.

        Raises:
            ValueError: if either is below 1.
        """
        super().__init__()
        if columns < 1 or every < 1:
            raise ValueError(f"RoundStrips needs columns >= 1 and every >= 1, got {columns} and {every}")
        self.columns, self.every = columns, every
        self._rows: dict[int, list[Tensor]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing has been drawn."""
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
        """Keeps the first samples of a round."""
        assert isinstance(outputs, DrawnSamples)
        row = self._rows.setdefault(dataloader_idx, [])
        missing = self.columns - sum(map(len, row))
        if missing > 0 and dataloader_idx % self.every == 0:
            row.append(outputs.x[:missing].cpu())

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture, if samples are pictures."""
        rows = [torch.cat(row) for _, row in sorted(self._rows.items()) if row]
        if not trainer.is_global_zero or not rows or rows[0].ndim != 4:
            return
        picture = image_grid(torch.cat(rows), len(rows[0]))
        write_png(output_folder(trainer, None) / "rounds.png", picture)
        log_image(trainer, "rounds/samples", picture)
