"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["StopCleanly"]


class StopCleanly(pl.Callback):
    """Stops training at the next optimizer step after SIGINT or SIGTERM, with a checkpoint of exactly that step.

    A second signal interrupts at once. Under several processes one of them being asked is enough.
    """

    def __init__(self, *, every_steps: int = 10) -> None:
        """Several processes agree every `every_steps` optimizer steps; a single one looks at each step."""
        super().__init__()
        self.every_steps = every_steps
        self.asked: str | None = None
        self._step = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over both signals."""
        self._step = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Notes the wish; gives the signal back to its former owner."""
        self.asked = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
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
        assert isinstance(pl_module, DiffusionModule)
        trainer.should_stop = True
        rank_zero_info(
            f"{self.asked or 'another process'} asked to stop: leaving after step {trainer.global_step} "
            f"({pl_module.images_seen} images); the same command goes on from here"
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._restore()
