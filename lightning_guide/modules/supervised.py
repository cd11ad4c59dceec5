"""Base of supervised training of guide networks: classifiers and regressors on clean or noisy images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_guide.data import Batch, DataInterface, SampleBatch, data_of
from lightning_guide.evaluation.runner import Failures
from lightning_guide.modules.needs import report_failures, require_needs
from lightning_guide.runs.checkpoints import images_per_step
from lightning_guide.seeds import check_seed, mix
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.resumed_optimizer import check_optimizer, optimizer_name, update_optimizer

__all__ = ["SupervisedModule"]


_RAMP = 0.05


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build the default optimizer."""
    return torch.optim.AdamW(parameters, lr=2e-3)


class SupervisedModule(pl.LightningModule, ABC):
    """Base of supervised training on encoded images for exactly `Trainer(max_steps=...)` steps.

    The learning rate of `optimizer` ramps up over 5 % of the steps, then falls linearly to zero. Every draw is a
    function of (seed, images seen, rank). After the last step, rank 0 writes the weights into the folder `snapshots` of
    the run with sigma_rel 0, from which `raw_network` loads them.

    Attributes:
        measured: names of the held-out measures.
        images_seen: images over all processes and accumulated micro-steps, exact between optimizer steps.
        failures: what failed in the newest validation.
    """

    measured: tuple[str, ...] = ("loss",)

    def __init__(self, network: nn.Module, *, optimizer: OptimizerCallable | None = None, seed: int = 0) -> None:
        """Configure training of `network`, which has `data_shape` and `recipe`; default AdamW, learning rate 0.002."""
        super().__init__()
        self.network: Any = network
        self.optimizer: Callable[[Any], torch.optim.Optimizer] = optimizer or _adamw
        self.seed = check_seed(seed)
        self.images_seen = 0
        self._pending_images = 0
        self._heldout = torch.zeros(0)
        self.failures = Failures()

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean training loss () of a batch; draws come from `generator`."""

    @abstractmethod
    def measures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the held-out measures named in `measured`, each (B,); draws come from `generator`."""

    def setup(self, stage: str) -> None:
        """Check that data and network fit.

        Raises:
            ValueError: if they do not, or `trainer.max_steps` is not set.
        """
        shape, expected = tuple(self._data.data_shape), tuple(self.network.data_shape)
        if shape != expected:
            raise ValueError(f"the data has shape {shape}, the {type(self.network).__name__} expects {expected}")
        if stage == "fit" and self.trainer.max_steps < 1:
            raise ValueError(f"{type(self).__name__} trains for a fixed number of steps: set trainer.max_steps")

    def on_fit_start(self) -> None:
        """Check what callbacks will need.

        Raises:
            MissingNeedsError: listing everything that is missing.
        """
        require_needs(self, lambda: ())

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """Return an empty list: guide networks draw no samples."""
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer with its learning rate schedule."""
        optimizer = self.optimizer(self.parameters())
        steps = self.trainer.max_steps
        ramp = max(1, round(_RAMP * steps))
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / ramp, max(0.0, 1 - k / steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of one micro-batch."""
        images = self.images_seen + self._pending_images
        generator = torch.Generator(self.device).manual_seed(mix(self.seed, "augment", images, self.global_rank))
        self._pending_images += len(batch.x) * self.trainer.world_size
        loss = self.loss(batch, generator)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.x))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take one step, then advance the clock."""
        super().optimizer_step(*args, **kwargs)
        self.images_seen += self._pending_images
        self._pending_images = 0

    def on_validation_epoch_start(self) -> None:
        """Reset the held-out sums."""
        self.failures.failed = {}
        self._heldout = torch.zeros(len(self.measured) + 1, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one held-out batch."""
        draw = mix(self.seed, "heldout", batch_idx, self.global_rank)
        with self.failures.contain("held-out measures"):
            found = self.measures(batch, torch.Generator(self.device).manual_seed(draw))
            sums = [found[name].sum(dtype=torch.float64) for name in self.measured]
            self._heldout += torch.stack([*sums, sums[0].new_full((), len(batch.x))])

    def on_validation_epoch_end(self) -> None:
        """Log the means of the held-out measures over all processes, if there is held-out data."""
        *sums, count = self.trainer.strategy.reduce(self._heldout, reduce_op="sum").tolist()
        if count and not self.failures.all_failed():
            means = {f"heldout/{name}": value / count for name, value in zip(self.measured, sums, strict=True)}
            self.log_dict(means, prog_bar=True, logger=False, batch_size=1)
            for logger in [] if self.trainer.sanity_checking else self.loggers:
                logger.log_metrics(means, step=self.evaluated_step)

    def on_validation_end(self) -> None:
        """Report failures, after callbacks have written a checkpoint."""
        if not self.trainer.sanity_checking:
            report_failures(self.failures, fitting=self.trainer.state.fn == "fit")

    @property
    def evaluated_step(self) -> int:
        """Steps of the evaluated weights, x of their results in loggers."""
        if self.trainer.state.fn == "fit":
            return self.trainer.global_step
        return round(self.images_seen / (images_per_step(self.trainer.default_root_dir) or self._data.batch_size))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the clock and the class of the optimizer."""
        checkpoint["images_seen"] = self.images_seen
        if self.trainer.optimizers:
            checkpoint["optimizer"] = optimizer_name(self.trainer.optimizers[0])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the clock, unless weights alone were saved; the optimizer keeps its settings of this config.

        Raises:
            ValueError: if it is of another class than that of the checkpoint.
        """
        self.images_seen = checkpoint.get("images_seen", 0)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            made = self.optimizer(self.parameters())
            check_optimizer(made, checkpoint)
            update_optimizer(made, checkpoint)

    def on_fit_end(self) -> None:
        """Store the weights, unless the fit was a trial or was stopped before its last step."""
        trainer = self.trainer
        finished = trainer.global_step >= trainer.max_steps and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if finished and trainer.is_global_zero:
            SnapshotStore(Path(trainer.default_root_dir) / "snapshots").save(
                self.network.state_dict(),
                images=self.images_seen,
                sigma_rel=0.0,
                recipe=self.network.recipe,
                planned_images=self.images_seen,
            )

    @property
    def _data(self) -> DataInterface:
        return data_of(self.trainer)
