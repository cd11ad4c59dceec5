"""Training of the small classifier whose features and answers judge generated pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_guide.data import Batch, SampleBatch
from lightning_guide.networks.classifier import Classifier
from lightning_guide.seeds import mix
from lightning_guide.snapshots import SnapshotStore

__all__ = ["ClassifierModule", "shifted"]

_RAMP = 0.05


def shifted(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Pictures `x` (B, C, H, W), each moved by up to `pixels` in each direction; the border pixels fill the gap."""
    batch, _, height, width = x.shape
    offsets = torch.randint(2 * pixels + 1, (2, batch), generator=generator, device=x.device)
    rows = (offsets[0, :, None] + torch.arange(height, device=x.device) - pixels).clamp(0, height - 1)  # (B, H)
    columns = (offsets[1, :, None] + torch.arange(width, device=x.device) - pixels).clamp(0, width - 1)  # (B, W)
    item = torch.arange(batch, device=x.device)[:, None, None]
    return x[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer unless told otherwise."""
    return torch.optim.AdamW(parameters, lr=2e-3)


class ClassifierModule(pl.LightningModule):
    """Cross-entropy training on `Batch`es of encoded pictures, for exactly `Trainer(max_steps=...)` steps.

    The learning rate of `optimizer` ramps up over 5 % of the steps, then falls linearly to zero. Every draw is a
    function of (seed, images seen, rank). When all steps are done, rank 0 writes the weights into the folder
    `snapshots` of the run as those of sigma_rel 0, where `evaluation.ClassifierFeatures` finds them.

    Attributes:
        images_seen: images over all processes and accumulated micro-steps, exact between optimizer steps.
    """

    def __init__(
        self,
        network: Classifier,
        *,
        optimizer: OptimizerCallable | None = None,
        label_smoothing: float = 0.0,
        augment: int = 0,
        seed: int = 0,
    ) -> None:
        """Configures training.

        Args:
            network: the classifier.
            optimizer: default AdamW with learning rate 0.002.
            label_smoothing: share of each target that is spread over all classes.
            augment: training pictures are moved by up to so many pixels (mirroring is the data's affair).
            seed: of the moves.

        Raises:
            ValueError: if `label_smoothing` is not in [0, 1) or `augment` is negative.
        """
        super().__init__()
        if not 0 <= label_smoothing < 1 or augment < 0:
            raise ValueError(
                f"ClassifierModule needs 0 <= label_smoothing < 1 and augment >= 0, got {label_smoothing} and {augment}"
            )
        self.network = network
        self.optimizer: Callable[[Any], torch.optim.Optimizer] = optimizer or _adamw
        self.label_smoothing, self.augment, self.seed = label_smoothing, augment, seed
        self.images_seen = 0
        self._pending_images = 0
        self._heldout = torch.zeros(3, dtype=torch.float64)  # sum of losses, right answers, pictures

    def setup(self, stage: str) -> None:
        """Checks that data and network fit.

        Raises:
            ValueError: if they do not, or training has no planned end.
        """
        data = self._data
        if tuple(data.data_shape) != self.network.data_shape:
            raise ValueError(
                f"the data has shape {tuple(data.data_shape)}, the classifier expects {self.network.data_shape}"
            )
        if data.num_classes != self.network.num_classes:
            raise ValueError(f"the data has {data.num_classes} classes, the classifier {self.network.num_classes}")
        if stage == "fit" and self.trainer.max_steps < 1:
            raise ValueError("ClassifierModule trains for a fixed number of steps: set trainer.max_steps")

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """None: a classifier draws no samples."""
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer with its ramp up and down."""
        optimizer = self.optimizer(self.parameters())
        steps = self.trainer.max_steps
        ramp = max(1, round(_RAMP * steps))
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / ramp, max(0.0, 1 - k / steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of one micro-batch."""
        x, labels = self._labelled(batch)
        images = self.images_seen + self._pending_images
        generator = torch.Generator(self.device).manual_seed(mix(self.seed, "augment", images, self.global_rank))
        if self.augment:
            x = shifted(x, self.augment, generator)
        self._pending_images += len(x) * self.trainer.world_size
        loss = F.cross_entropy(self.logits(x, generator), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(x))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; then its images count."""
        super().optimizer_step(*args, **kwargs)
        self.images_seen += self._pending_images
        self._pending_images = 0

    def logits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the network answers (B, K) for pictures `x` (B, C, H, W); `generator` is there for what is random."""
        answer: Tensor = self.network(x)
        return answer

    def on_validation_epoch_start(self) -> None:
        """Starts the held-out sums anew."""
        self._heldout = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds one held-out batch."""
        x, labels = self._labelled(batch)
        draw = mix(self.seed, "heldout", batch_idx, self.global_rank)
        logits = self.logits(x, torch.Generator(self.device).manual_seed(draw))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        self._heldout += torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.new_tensor(len(x))])

    def on_validation_epoch_end(self) -> None:
        """Logs held-out accuracy and cross-entropy over all processes."""
        loss, right, count = self.trainer.strategy.reduce(self._heldout, reduce_op="sum").tolist()
        values = {"heldout/accuracy": right / max(count, 1), "heldout/loss": loss / max(count, 1)}
        self.log_dict(values, prog_bar=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the clock."""
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the clock."""
        self.images_seen = checkpoint["images_seen"]

    def on_fit_end(self) -> None:
        """Keeps the weights, unless the fit was a trial or was stopped before its last step."""
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
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _labelled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures and labels.

        Raises:
            ValueError: if a picture has no label.
        """
        if batch.condition is None:
            raise ValueError("a classifier learns from labels, but this data has none (num_classes of the datamodule)")
        return batch.x, batch.condition
