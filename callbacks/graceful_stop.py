"""Graceful stop on SIGINT (Ctrl-C), SIGTERM and SIGUSR1: finish the optimizer step, write a checkpoint, exit."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import _TunerExitException

__all__ = ["GracefulStop"]


class StopRequested(_TunerExitException):
    """Way out of a validation after a signal: Lightning tears down, where `RunCheckpoint` saves, and `fit` returns."""


class GracefulStop(pl.Callback):
    """Stop of training after a signal: at the end of the optimizer step, or at once in a validation within a fit.

    `RunCheckpoint` saves the newest step; a validation that was left is repeated when the run continues. No validation
    runs in between. SIGUSR1 counts unless something else handles it, as Lightning does under SLURM. A second signal
    interrupts at once.

    With several processes, a signal to one of them is enough. They agree about once a second and at least every
    `every_steps` optimizer steps; in a validation before each batch.
    """

    def __init__(self, *, every_steps: int = 10) -> None:
        """Configure the largest number `every_steps` of optimizer steps after which several processes agree.

        Raises:
            ValueError: if `every_steps` is below 1.
        """
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"GracefulStop needs every_steps >= 1, got {every_steps}")
        self.every_steps = every_steps
        self.requested_by: str | None = None  # name of the signal
        self.stopped = False  # whether the last fit was stopped
        self._step = 0
        self._next, self._since = 0, (0, 0.0)  # step of the next agreement; step and time of the last
        self._between_steps = False
        self._interruptible = False
        self._shared_batches: list[int] = []  # batches that every process has, by validation loader
        self._handlers: dict[int, Any] = {}
        self._limit: int | float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers; nothing outside the main thread, where Python does not allow it."""
        self.requested_by, self.stopped = None, False
        self._step = self._next = trainer.global_step
        self._since = (self._step, time.monotonic())
        self._between_steps = self._interruptible = False
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
                numbers.append(signal.SIGUSR1)
            for number in numbers:
                self._handlers[number] = signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        """Request a stop and restore the previous handlers."""
        self.requested_by = signal.Signals(number).name
        self._restore(signal.SIGINT, signal.SIGTERM)  # the default of SIGUSR1 would end the process while it saves
        if self._interruptible:
            raise StopRequested

    def _restore(self, *numbers: int) -> None:
        for number in numbers or tuple(self._handlers):
            if number in self._handlers:
                handler = self._handlers.pop(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here on the optimizer step has to be finished."""
        self._between_steps = self._interruptible = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two optimizer steps, never within an accumulated one."""
        if trainer.global_step == self._step:
            return
        self._step, self._between_steps = trainer.global_step, True
        if trainer.world_size > 1 and self._step < self._next:
            return
        if not self._agree(trainer):
            return
        trainer.should_stop = True
        # Lightning would validate before it stops, which may take longer than the sender of the signal will wait
        self._limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
        self._say(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Allow to be interrupted, or let several processes agree on the batches that each of them has."""
        self._shared_batches = []
        if trainer.state.fn != "fit" or not self._between_steps:
            return
        if trainer.world_size > 1:
            here = [int(count) if math.isfinite(count) else 0 for count in trainer.num_val_batches]
            counts = torch.tensor(here, device=trainer.strategy.root_device)
            self._shared_batches = trainer.strategy.reduce(counts, reduce_op="min").tolist()
            return
        self._interruptible = True
        if self.requested_by is not None:
            raise StopRequested

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before a batch of a validation within a fit."""
        if self._interruptible and self.requested_by is not None:  # the exception was caught by other code
            raise StopRequested
        shared = self._shared_batches[dataloader_idx : dataloader_idx + 1]
        if shared and batch_idx < shared[0] and self._agree(trainer):
            raise StopRequested

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the previous signal handlers and the validation limit."""
        self._between_steps = self._interruptible = False
        self._restore()
        if self._limit is not None:
            trainer.limit_val_batches, self._limit = self._limit, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._between_steps = self._interruptible = False
        self._restore()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say why a validation was left."""
        if stage == "fit" and self._between_steps:
            self._between_steps = self._interruptible = False
            self._restore()
            self._say(trainer)

    def _agree(self, trainer: pl.Trainer) -> bool:
        """Return whether a process received a signal; all must call this."""
        if trainer.world_size == 1:
            return self.requested_by is not None
        step, now = self._step, time.monotonic()
        seconds = (now - self._since[1]) / max(step - self._since[0], 1)
        state = torch.tensor([float(self.requested_by is not None), seconds], device=trainer.strategy.root_device)
        requested, seconds = trainer.strategy.reduce(state, reduce_op="max").tolist()
        if step > self._since[0]:
            self._since = (step, now)
        self._next = step + min(self.every_steps, max(1, int(1 / max(seconds, 1e-6))))
        return bool(requested)

    def _say(self, trainer: pl.Trainer) -> None:
        self.stopped = True
        of = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        rank_zero_info(
            f"{self.requested_by or 'another process'} requested a stop: stopping after step {trainer.global_step}{of};"
            " rerun the same command to resume"
        )
