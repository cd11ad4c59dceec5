"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["GracefulStop"]


class GracefulStop(pl.Callback):
    """Stops training at the next optimizer step after SIGINT or SIGTERM; `RunCheckpoint` then saves exactly that step.

    No validation comes in between. A second signal interrupts at once. Under several processes one of them being asked
    is enough.
    """

    def __init__(self, *, every_steps: int = 10) -> None:
        """Several processes agree every `every_steps` optimizer steps; a single one looks at each step.

        Raises:
            ValueError: if `every_steps` is below 1.
        """
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"GracefulStop needs every_steps >= 1, got {every_steps}")
        self.every_steps = every_steps
        self.asked: str | None = None
        self._step = 0
        self._handlers: dict[int, Any] = {}
        self._limit: int | float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over both signals; outside of the main thread Python does not allow it, and all stays as it is."""
        self.asked = None
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Notes the wish; gives the signal back to its former owner."""
        self.asked = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leaves between two steps, never within an accumulated one."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.world_size > 1 and self._step % self.every_steps:
            return
        if not trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False):
            return
        trainer.should_stop = True
        # Lightning would validate before it leaves, for longer than whoever sent the signal may want to wait
        self._limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
        rank_zero_info(
            f"{self.asked or 'another process'} asked to stop: leaving after step {trainer.global_step}; "
            "the same command goes on from here"
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back."""
        self._restore()
        if self._limit is not None:
            trainer.limit_val_batches, self._limit = self._limit, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._restore()
