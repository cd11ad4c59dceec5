"""LightningModule for diffusion training; evaluation is inherited from `EvaluatedModule`.

The clock is `images_seen`, counted over all processes and accumulated micro-steps. Every draw of a training step is a
function of (seed, images seen, rank), so a killed run resumes bit for bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_guide.conditioning import drop_condition, lowest_label
from lightning_guide.data import Batch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation, under_guidances, under_only_guidance
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.planned_guiders import PlannedSnapshots
from lightning_guide.modules.evaluation_mixin import EvaluatedModule
from lightning_guide.modules.needs import check_fits_data, fit_needs, require_needs
from lightning_guide.runs.models import DryRunModels, find_average
from lightning_guide.seeds import check_seed, mix
from lightning_guide.training.learning_rate import InverseSqrtRate, LearningRate, adam
from lightning_guide.training.losses import TrainingLoss
from lightning_guide.training.monitor import GradientGuard, NoiseLevelMeans
from lightning_guide.training.resumed_optimizer import (
    check_optimizer,
    drop_frozen,
    optimizer_name,
    trained_parameters,
    update_optimizer,
)
from lightning_guide.training.sharding import average_gradients_, unshard
from lightning_guide.utils.needs import attempt

__all__ = ["DiffusionModule"]


class DiffusionModule(EvaluatedModule):
    """Training of `denoiser`, and evaluation of it or its averages under any number of named guidances."""

    def __init__(
        self,
        denoiser: Denoiser,
        loss: TrainingLoss | None = None,
        *,
        learning_rate: LearningRate | None = None,
        optimizer: OptimizerCallable | None = None,
        label_dropout: float = 0.0,
        seed: int = 0,
        evaluations: dict[str, Evaluation] | None = None,
        guidances: dict[str, Denoiser] | None = None,
        prediction: Evaluation | None = None,
        metrics: dict[str, SampleMetric] | None = None,
        average: float | Literal["half_life"] | None = 0.05,
        images: int | float | str | None = None,
        heldout_sigmas: Sequence[float] = (0.02, 0.1, 0.3, 1.0, 3.0),
        bin_edges: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0),
        max_bad_steps: int = 100,
    ) -> None:
        """Configure training and evaluation.

        Args:
            denoiser: the model to train.
            loss: training loss; None for a run that is only sampled and evaluated.
            learning_rate: rate as a function of images seen; default InverseSqrtRate(0.01).
            optimizer: default Adam(betas=(0.9, 0.99), eps=1e-8 / elements of an example); its own rate is overwritten.
            label_dropout: probability that an example's condition is dropped (for classifier-free guidance).
            seed: seed of training draws.
            evaluations: name -> sampling loop of validation and test.
            guidances: name -> guidance; each is evaluated with the settings of the first evaluation. They replace all
                other evaluations.
            prediction: sampling loop of `predict`; if there is one guidance in `guidances` and none here, under that.
            metrics: metrics of the evaluations that have none of their own.
            average: sigma_rel of the average to evaluate, or "half_life" (`callbacks.HalfLifeEMA`); None: the raw
                weights.
            images: images of training of the model evaluated after training; default the newest snapshot.
            heldout_sigmas: noise levels of the held-out loss.
            bin_edges: noise levels that separate the bins of the logged training loss.
            max_bad_steps: number of consecutive steps without finite gradients, which are left out, that stop training.

        Raises:
            ValueError: if `label_dropout` is not in [0, 1), or is positive for a model without condition.
        """
        super().__init__(
            denoiser,
            loss,
            seed=seed,
            evaluations=under_guidances(evaluations or {}, guidances or {}),
            prediction=under_only_guidance(prediction or Evaluation(), guidances or {}),
            metrics=metrics or {},
            average=average,
            images=images,
            heldout_sigmas=heldout_sigmas,
        )
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}")
        if label_dropout and not denoiser.conditional:
            raise ValueError(
                f"label_dropout={label_dropout} needs a model with labels or embeddings, this one has num_classes=0"
            )
        if label_dropout and lowest_label(denoiser) == 0:
            raise ValueError(f"label_dropout={label_dropout} needs a network with a class for no condition")
        self.learning_rate = learning_rate or InverseSqrtRate()
        self.optimizer: Callable[[Any], torch.optim.Optimizer] | None = optimizer
        self.label_dropout, self.seed = label_dropout, check_seed(seed)
        self.planned_images: int | None = None
        self._pending_images = 0
        self._means = NoiseLevelMeans(bin_edges)
        self._guard = GradientGuard(max_bad_steps)

    # Set-up

    def setup(self, stage: str) -> None:
        """Check data and network; reset the clock and set the planned length of the run.

        Raises:
            ValueError: if data, network and loss do not fit.
        """
        check_fits_data(self._data, self.denoiser)
        if stage == "fit" and self.loss is None:
            raise ValueError("fit needs a training loss (model.loss), EDMLoss or FlowMatchingLoss, for example")
        if self.loss is not None:
            self.loss.check(self.denoiser)
        if stage == "fit" and self.global_step == 0:  # checkpoints are restored later
            self.images_seen = self._pending_images = 0
            steps = self.trainer.max_steps
            self.planned_images = steps * self.images_per_step if steps > 0 else None

    def on_fit_start(self) -> None:
        """Check what evaluations and callbacks will need, after callbacks have registered their snapshots.

        Raises:
            MissingNeedsError: listing everything that is missing.
        """
        main, was_training = unshard(self.denoiser), self.denoiser.training
        models = DryRunModels(main.eval(), self.trainer.default_root_dir, device=self.device)
        with self.trainer.precision_plugin.val_step_context():
            require_needs(self, lambda: self.missing(models))
        self.denoiser.train(was_training)

    def missing(self, models: Models) -> Iterator[str]:
        """Yield what the evaluations of a fit will miss; `models` are as far as they exist.

        Guidances without effect cause warnings.
        """
        if self.average is not None and self.trainer.enable_validation:
            average, callbacks = self.average, self.trainer.callbacks  # type: ignore[attr-defined]
            if error := attempt(lambda: find_average(callbacks, average)):
                yield error
        if error := attempt(lambda: self._num_labels):
            yield error
            return
        planned = PlannedSnapshots.of(
            self.trainer,
            images_seen=self.images_seen,
            planned_images=self.planned_images,
            images_per_step=self.images_per_step,
        )
        yield from fit_needs(self.evaluations, self._needs(models), planned, self.trainer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer without a scheduler: `optimizer_step` sets the rate from the images seen."""
        scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        elements = math.prod(self.denoiser.data_shape)
        optimizer = (self.optimizer or adam(scaled=scaled, elements=elements))(trained_parameters(self))
        given = optimizer.defaults.get("lr")
        default = inspect.signature(type(optimizer)).parameters.get("lr")
        if self.optimizer and default and given not in (default.default, getattr(self.learning_rate, "peak", None)):
            rank_zero_warn(
                f"lr={given:g} of model.optimizer has no effect: model.learning_rate sets the rate of each step"
            )
        return optimizer

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean objective of one micro-batch."""
        draw = mix(self.seed, "train", self.images_seen + self._pending_images, self.global_rank)
        torch.manual_seed(draw)  # dropout inside the network draws from the global generator
        generator = torch.Generator(self.device).manual_seed(draw)
        condition = batch.condition
        if condition is not None and self.label_dropout:
            dropped = torch.rand(len(condition), generator=generator, device=self.device) < self.label_dropout
            condition = drop_condition(condition, dropped)
        assert self.loss is not None
        terms = self.loss(self.denoiser, batch.x, condition, generator)
        self._pending_images += len(batch.x) * self.trainer.world_size
        self._means.update(terms)
        objective = terms.objective.mean()
        # waits in the first step of an epoch, in which Lightning makes its counters
        self.log("loss", objective.detach(), prog_bar=True, logger=False, batch_size=len(batch.x))
        return objective

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average gradients of unsharded weights; leave out and count steps whose gradients are not finite."""
        average_gradients_(self)
        self._guard.check(self, optimizer, self.global_step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take one step at the rate of `images_seen`, then advance the clock and normalize weights."""
        rate = self.learning_rate.at(self.images_seen)
        for group in optimizer.param_groups:
            group["lr"] = rate
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.images_seen += self._pending_images
        self._pending_images = 0
        self.denoiser.constrain()
        if self.loss is not None:
            self.loss.constrain()
        step = self.global_step + 1  # Lightning counts it after this hook
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            means = self._means.report(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))
            report = {f"train/{key}": value for key, value in means.items()}
            report |= {"train/learning_rate": rate, "train/skipped_steps": int(self._guard.skipped)}
            for logger in self.loggers:
                logger.log_metrics(report | {"images_seen": self.images_seen}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the clock, the counts of bad steps and the class of the optimizer."""
        if self.trainer.optimizers:
            checkpoint["optimizer"] = optimizer_name(self.trainer.optimizers[0])
        checkpoint["clock"] = {"images_seen": self.images_seen, "planned_images": self.planned_images}
        checkpoint["gradient_guard"] = self._guard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the clock and the counts of bad steps; a named optimizer keeps its settings of this config.

        Weights that were saved alone can be evaluated.

        Raises:
            ValueError: if it is of another class than that of the checkpoint.
        """
        if "clock" not in checkpoint and not self._fitting:
            return
        if self._trainer is not None and self.trainer.state.fn == "fit":
            drop_frozen(self, checkpoint)
            made = self.configure_optimizers()
            check_optimizer(made, checkpoint)
            if self.optimizer is not None:
                update_optimizer(made, checkpoint)
        clock = checkpoint["clock"]
        self.images_seen, self.planned_images = clock["images_seen"], clock["planned_images"]
        self._guard.restore(checkpoint["gradient_guard"])
