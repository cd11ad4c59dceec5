"""Snapshots at budgets: after exactly so many images of training, whatever the length of the run."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from callbacks.post_hoc_ema import PostHocEMA
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["BudgetSnapshots"]


class BudgetSnapshots(pl.Callback):
    """Lets `PostHocEMA` store its averages after each of `budgets` images, for `Snapshot(images=...)` to find them.

    The budget B of SIMS (https://arxiv.org/abs/2408.16333) counts images seen, over all processes.
    """

    def __init__(self, budgets: Sequence[int]) -> None:
        """`budgets` in images.

        Raises:
            ValueError: if there is none, or one is below 1.
        """
        super().__init__()
        if not budgets or min(budgets) < 1:
            raise ValueError(f"BudgetSnapshots needs budgets >= 1 in images, got {list(budgets)}")
        self.budgets = sorted(set(budgets))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hands the budgets to the averages.

        Raises:
            ValueError: if a budget does not end with a step, or there is no `PostHocEMA`.
        """
        averages = [c for c in trainer.callbacks if isinstance(c, PostHocEMA)]  # type: ignore[attr-defined]
        if not averages or not isinstance(pl_module, DiffusionModule):
            raise ValueError("BudgetSnapshots stores averages of callbacks.PostHocEMA; add that callback as well")
        step = pl_module.images_per_step * averages[0].update_every_steps
        for budget in self.budgets:
            if budget % step:
                below = budget // step * step
                near = f"{below} or {below + step}" if below else f"{step}"
                raise ValueError(
                    f"the budget of {budget} images does not end with a step: averages move every {step} images "
                    f"(batch size, processes, accumulated batches, update_every_steps); expected {near}"
                )
        for average in averages:
            average.also_at(self.budgets)
        planned = pl_module.planned_images
        beyond = [budget for budget in self.budgets if planned is not None and budget > planned]
        if beyond:
            rank_zero_info(f"this run ends after {planned} images and will not reach the budgets {beyond}")
