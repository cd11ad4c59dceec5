"""Snapshots at given fractions of training, or after given numbers of images, for use as guiders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from callbacks.post_hoc_ema import PostHocEMA
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.snapshots import fraction_images

__all__ = ["BudgetSnapshots", "EarlySnapshots"]


class EarlySnapshots(pl.Callback):
    """Snapshots of the averages of `PostHocEMA` at `fractions` of the planned run.

    Up to each fraction, snapshots are stored at `rebuildable` evenly spaced times, so that averages of other widths
    can be reconstructed at that fraction (16 times give a profile error of about 2 % at sigma_rel 0.20).
    """

    def __init__(
        self, fractions: Sequence[str | float] = ("1/32", "1/16", "1/8", "1/3.5"), *, rebuildable: int = 16
    ) -> None:
        """Configure `fractions` of the run; `rebuildable` = 1 stores only the tracked averages at these times.

        Raises:
            ValueError: if a fraction is not in (0, 1], or `rebuildable` is below 1.
        """
        super().__init__()
        if rebuildable < 1:
            raise ValueError(f"EarlySnapshots needs rebuildable >= 1 (1: at the fractions alone), got {rebuildable}")
        self.fractions, self.rebuildable = list(fractions), rebuildable
        for fraction in self.fractions:
            fraction_images(fraction, 1)

    def times(self, planned_images: int) -> list[int]:
        """Return all times, in images, at which a snapshot is stored."""
        ends = [fraction_images(fraction, planned_images) for fraction in self.fractions]
        spread = {int(Fraction(end * k, self.rebuildable)) for end in ends for k in range(1, self.rebuildable + 1)}
        return sorted(spread - {0})

    def missing(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[str]:
        """Yield sentences if the run has no planned end or no `PostHocEMA`."""
        if not isinstance(module, DiffusionModule) or module.planned_images is None:
            yield "EarlySnapshots needs a DiffusionModule and a planned run: set trainer.max_steps"
        if not _averages(trainer):
            yield "EarlySnapshots stores averages of callbacks.PostHocEMA; add that callback as well"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Register the times with the averages."""
        if isinstance(pl_module, DiffusionModule) and pl_module.planned_images is not None:
            for average in _averages(trainer):
                average.add_times(self.times(pl_module.planned_images))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report a resumed run whose length differs from its plan."""
        assert isinstance(pl_module, DiffusionModule)
        rest = (trainer.max_steps - trainer.global_step) * pl_module.images_per_step
        now, planned = pl_module.images_seen + rest, pl_module.planned_images
        if now != planned and trainer.max_steps > 0:
            rank_zero_info(
                f"this run was planned for {planned} images and will now train on {now} images; fractions of the run, "
                f"{', '.join(map(str, self.fractions))}, still refer to the plan"
            )


class BudgetSnapshots(pl.Callback):
    """Snapshots of the averages of `PostHocEMA` after each of `budgets` images, for `Snapshot(images=...)`.

    The budget B of SIMS (https://arxiv.org/abs/2408.16333) counts images seen, over all processes.
    """

    def __init__(self, budgets: Sequence[int]) -> None:
        """Configure `budgets` in images.

        Raises:
            ValueError: if `budgets` is empty or one is below 1.
        """
        super().__init__()
        if not budgets or min(budgets) < 1:
            raise ValueError(f"BudgetSnapshots needs budgets >= 1 in images, got {list(budgets)}")
        self.budgets = sorted(set(budgets))

    def missing(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[str]:
        """Yield sentences if a budget is not a multiple of the images per update, or there is no `PostHocEMA`."""
        averages = _averages(trainer)
        if not averages or not isinstance(module, DiffusionModule):
            yield "BudgetSnapshots stores averages of callbacks.PostHocEMA; add that callback as well"
            return
        step = module.images_per_step * averages[0].update_every_steps
        for budget in self.budgets:
            if budget % step:
                below = budget // step * step
                near = f"{below} or {below + step}" if below else f"{step}"
                yield (
                    f"the budget of {budget} images does not end with a step: averages move every {step} images "
                    f"(batch size, processes, accumulated batches, update_every_steps); expected {near}"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Register the budgets with the averages."""
        if not isinstance(pl_module, DiffusionModule):
            return
        for average in _averages(trainer):
            average.add_times(self.budgets)
        planned = pl_module.planned_images
        beyond = [budget for budget in self.budgets if planned is not None and budget > planned]
        if beyond:
            rank_zero_info(f"this run ends after {planned} images and will not reach the budgets {beyond}")


def _averages(trainer: pl.Trainer) -> list[PostHocEMA]:
    """Return the callbacks that store averages."""
    return [each for each in trainer.callbacks if isinstance(each, PostHocEMA)]  # type: ignore[attr-defined]
