"""Settings of Lightning's trainer that have no meaning here, refused by name instead of being ignored.

Training is one endless epoch, counted in optimizer steps: `max_steps`, `val_check_interval` and `limit_val_batches`
apply; whatever is counted in epochs, or would change the length of an epoch, does not. The learning rate, the number of
images in a step and the weight averages are settings of the module and of callbacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["ignored_settings"]


_STEPS = "training is one endless epoch; set trainer.max_steps"

_CALLBACKS = {
    "BatchSizeFinder": "the number of images in a step is that of the data; set data.batch_size",
    "GradientAccumulationScheduler": "there are no epochs; set trainer.accumulate_grad_batches",
    "LearningRateFinder": "the module sets the learning rate of each step; set model.learning_rate",
    "StochasticWeightAveraging": "there are no epochs; add callbacks.PostHocEMA, which averages weights",
}


def ignored_settings(trainer: Any) -> Iterator[str]:
    """Yield one sentence for each setting of a fit by `trainer` that would be ignored; none in a trial run."""
    if trainer.fast_dev_run:
        return
    if trainer.max_epochs not in (None, -1):
        yield f"trainer.max_epochs is {trainer.max_epochs}, but {_STEPS} and leave max_epochs at -1"
    if trainer.min_epochs and not (trainer.min_epochs == 1 and trainer.min_steps):  # Lightning adds a 1 to min_steps
        yield f"trainer.min_epochs is {trainer.min_epochs}, but {_STEPS} and leave min_epochs out"
    if trainer.min_steps:
        yield (
            f"trainer.min_steps is {trainer.min_steps}, but a run ends after trainer.max_steps or at a requested stop; "
            "leave min_steps out"
        )
    if trainer.check_val_every_n_epoch not in (None, 1):
        yield (
            f"trainer.check_val_every_n_epoch is {trainer.check_val_every_n_epoch}, but training is one endless epoch; "
            "set trainer.val_check_interval, in batches"
        )
    if trainer.overfit_batches:
        yield (
            f"trainer.overfit_batches is {trainer.overfit_batches}, but the training stream is endless; make a data "
            "set of the examples to overfit"
        )
    elif trainer.limit_train_batches != 1.0:
        yield f"trainer.limit_train_batches is {trainer.limit_train_batches}, but {_STEPS}"
    if trainer.reload_dataloaders_every_n_epochs:
        yield (
            f"trainer.reload_dataloaders_every_n_epochs is {trainer.reload_dataloaders_every_n_epochs}, but training "
            "is one endless epoch; leave it out"
        )
    for callback in trainer.callbacks:
        if reason := _CALLBACKS.get(type(callback).__name__):
            yield f"the callback {type(callback).__name__} has no effect: {reason}"
