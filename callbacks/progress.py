"""Progress of training, evaluations and predictions on stderr, by their names."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from lightning_guide.utils.terminal import Progress, show

__all__ = ["NamedProgress"]


class NamedProgress(pl.callbacks.ProgressBar):
    """Progress bar of Lightning's commands with the names of the evaluations and the time that is left.

    One line that is rewritten on a terminal, a line now and then in a log (`lightning_guide.utils.terminal`). The
    command line uses it unless the config names another one or sets `enable_progress_bar: false`.
    """

    def __init__(self) -> None:
        """Create the bar."""
        super().__init__()
        self._enabled = True
        self._loop: Progress | None = None  # of a validation, test or prediction
        self._fit: Progress | None = None

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar of the steps."""
        total = trainer.max_steps if trainer.max_steps > 0 else None
        done = trainer.global_step
        self._fit = Progress("training", total, unit="steps", done=done, silent=not self._enabled)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the optimizer step with the metrics that the module logs to the bar."""
        if self._fit is not None:
            shown = {key: value for key, value in self.get_metrics(trainer, pl_module).items() if key != "v_num"}
            note = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            self._fit.update(trainer.global_step, note=note)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Erase the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Erase the bars, so that the error has a line of its own."""
        self._close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what is to be evaluated, before metrics read the real data; a fit shows bars alone."""
        if trainer.state.fn == "validate":
            self._announce("validate", ["held-out loss", *_names(pl_module)], trainer.num_val_batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what is to be evaluated."""
        self._announce("test", _names(pl_module), trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how much is to be drawn."""
        self._announce("predict", [], trainer.num_predict_batches)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin the bar of an evaluation."""
        if self.has_dataloader_changed(dataloader_idx):
            self._begin("validate", self.total_val_batches_current_dataloader, pl_module, dataloader_idx - 1)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._count()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Erase the bar."""
        self._end()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin the bar of an evaluation."""
        if self.has_dataloader_changed(dataloader_idx):
            self._begin("test", self.total_test_batches_current_dataloader, pl_module, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin the bar of the prediction."""
        if self.has_dataloader_changed(dataloader_idx):
            self._begin("predict", self.total_predict_batches_current_dataloader, None, 0)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def _announce(self, command: str, names: Sequence[str], batches: Sequence[int | float]) -> None:
        """Show one line with the parts of a loop that have batches, and their number."""
        chosen = [name for name, count in zip(names, batches, strict=False) if count]
        total = f"{int(sum(batches)):,} batches" if math.isfinite(sum(batches)) else ""
        if self._enabled:
            show(f"{command}: {', '.join([*chosen, *filter(None, [total])])}\n", sys.stderr)

    def _begin(self, command: str, batches: float, module: Any, number: int) -> None:
        """Begin the bar of evaluation `number` of `module`; -1 is the held-out data."""
        if self._loop is not None:
            self._loop.close()
        names = [] if module is None else _names(module)
        if names:
            part = names[number] if number >= 0 else "held-out loss"
            command = f"{command} {part} ({number + 1} of {len(names)})" if number >= 0 else f"{command} {part}"
        total = int(batches) if math.isfinite(batches) else None
        self._loop = Progress(command, total, unit="batches", silent=not self._enabled)
        self._loop.update(0)

    def _count(self) -> None:
        if self._loop is not None:
            self._loop.add()

    def _end(self) -> None:
        self.reset_dataloader_idx_tracker()
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _close(self) -> None:
        self._end()
        if self._fit is not None:
            self._fit.close()
            self._fit = None


def _names(module: Any) -> list[str]:
    """Return the names of the evaluations of a module, none of one without."""
    return list(getattr(getattr(module, "evaluations", None), "names", []))
