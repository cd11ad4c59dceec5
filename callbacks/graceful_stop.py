"""Graceful stop on SIGINT (Ctrl-C) and SIGTERM: finish the step, write a checkpoint, exit."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["GracefulStop"]


class GracefulStop(pl.Callback):
    """Stop of training at the next optimizer step after SIGINT or SIGTERM; `RunCheckpoint` then saves that step.

    No validation runs in between. A second signal interrupts at once. With several processes, a signal to one of them
    is enough.
    """

    def __init__(self, *, every_steps: int = 10) -> None:
        """Configure the check: several processes agree every `every_steps` optimizer steps, a single one at each step.

        Raises:
            ValueError: if `every_steps` is below 1.
        """
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"GracefulStop needs every_steps >= 1, got {every_steps}")
        self.every_steps = every_steps
        self.requested_by: str | None = None  # name of the signal
        self._step = 0
        self._handlers: dict[int, Any] = {}
        self._limit: int | float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install handlers for both signals; nothing outside the main thread, where Python does not allow it."""
        self.requested_by = None
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        """Request a stop and restore the previous handlers."""
        self.requested_by = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two optimizer steps, never within an accumulated one."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.world_size > 1 and self._step % self.every_steps:
            return
        if not trainer.strategy.reduce_boolean_decision(self.requested_by is not None, all=False):
            return
        trainer.should_stop = True
        # Lightning would validate before it stops, which may take longer than the sender of the signal will wait
        self._limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
        rank_zero_info(
            f"{self.requested_by or 'another process'} requested a stop: stopping after step {trainer.global_step}; "
            "rerun the same command to resume"
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the previous signal handlers and the validation limit."""
        self._restore()
        if self._limit is not None:
            trainer.limit_val_batches, self._limit = self._limit, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._restore()
