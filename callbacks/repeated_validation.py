"""A validation that was left is repeated when the fit continues, also the last one, after which no step follows.

Lightning repeats a validation in the middle of which a checkpoint was written, unless training has reached its last
step: then it ends the fit before any loop runs.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.fit_loop import _FitLoop

__all__ = [
    "count_from_the_start",
    "progress_before_validation",
    "repeat_last_validation",
    "skip_validation",
    "validates_after_batch",
    "validation_was_left",
]


class _RepeatingFitLoop(_FitLoop):
    """Fit loop that has not ended while its last validation is to be repeated."""

    @property
    def done(self) -> bool:
        """Whether the fit has ended."""
        return not self._repeats and super().done

    @property
    def _repeats(self) -> bool:
        """Whether a checkpoint of a validation that was left was loaded, and this fit validates there, too."""
        epoch = self.epoch_loop
        left = epoch.restarting and not epoch.val_loop._has_run and validation_was_left(self.trainer)
        return left and _is_due(self.trainer, epoch.batch_progress)


def repeat_last_validation(trainer: pl.Trainer) -> None:
    """Let the fit of `trainer` repeat a validation after the last step that was left."""
    if type(trainer.fit_loop) is _FitLoop:
        trainer.fit_loop.__class__ = _RepeatingFitLoop


def validation_was_left(trainer: pl.Trainer) -> bool:
    """Return whether the checkpoint that was loaded, if any, was written before a validation."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    return progress.ready > progress.completed


def validates_after_batch(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the batch that has begun."""
    return _is_due(trainer, trainer.fit_loop.epoch_loop.batch_progress)


def _is_due(trainer: pl.Trainer, batches: Any) -> bool:
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    count = batches.total.ready if epochs is None else batches.current.ready
    return bool(trainer.enable_validation and count and isinstance(every, int) and count % every == 0)


def count_from_the_start(trainer: pl.Trainer) -> None:
    """Forget the batch of a validation that was left, which Lightning would count for ever as begun."""
    total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    total.ready = total.started = total.completed


def skip_validation(loops: dict[str, Any]) -> None:
    """Change the progress in a checkpoint that was written before a validation to that after it."""
    progress = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for part in ("total", "current"):
        progress[part] |= {key: progress[part]["completed"] for key in ("ready", "started")}


def progress_before_validation(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the progress of the loops with which the validation after the present batch is repeated."""
    loops = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
    for part in ("total", "current"):
        batches = loops["fit_loop"]["epoch_loop.batch_progress"][part]
        batches["completed"] = batches["processed"]
    progress = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    progress["current"] = dict.fromkeys(progress["current"], 0)
    for part in ("total", "current"):  # a first batch was begun and not completed
        progress[part] |= {key: progress[part]["completed"] + 1 for key in ("ready", "started")}
    return loops
