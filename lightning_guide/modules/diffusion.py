"""Diffusion training with guided evaluation in its validation loops.

The clock is `images_seen`, counted over all processes and accumulated micro-steps. Every draw of a training step is a
function of (seed, images seen, rank), so a run that is killed and started again continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.utils.data import Dataset

from lightning_guide.conditions import without
from lightning_guide.data import Batch, SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation, under_guidances
from lightning_guide.evaluation.loop import DrawnSamples
from lightning_guide.evaluation.metric import SampleMetric
from lightning_guide.losses import TrainingLoss
from lightning_guide.modules.evaluations import GuidedEvaluations
from lightning_guide.modules.guiders_to_come import warn_if_nothing_stores
from lightning_guide.modules.heldout import HeldoutLoss
from lightning_guide.modules.learning_rate import InverseSqrtRate, LearningRate
from lightning_guide.modules.models import OtherRuns, RunModels, finished_model, keeper
from lightning_guide.modules.monitor import GradientGuard, NoiseLevelMeans
from lightning_guide.modules.optimizer import adam
from lightning_guide.modules.sharding import ShardedTraining, average_gradients_, whole
from lightning_guide.seeds import mix

__all__ = ["DiffusionModule"]


class DiffusionModule(ShardedTraining):
    """Trains `denoiser` and evaluates it, or its averages, under any number of named guidances."""

    def __init__(
        self,
        denoiser: Denoiser,
        loss: TrainingLoss,
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
        """Configures training and evaluation.

        Args:
            denoiser: the model that is trained.
            loss: its loss.
            learning_rate: rate as a function of images seen; default InverseSqrtRate(0.01).
            optimizer: default Adam(betas=(0.9, 0.99)); its own rate is overwritten.
            label_dropout: probability that an example's condition is dropped (for classifier-free guidance).
            seed: of training draws.
            evaluations: name -> sampling loop of validation and test.
            guidances: name -> guidance, each in place of that of the first evaluation; replace the other evaluations.
            prediction: the samples that `predict` draws.
            metrics: of the evaluations that name none of their own.
            average: sigma_rel of the average that is evaluated, or "half_life" (`callbacks.HalfLifeEMA`); None: the raw
                weights.
            images: age of the evaluated model after training; default the newest snapshot.
            heldout_sigmas: noise levels of the held-out loss.
            bin_edges: noise levels that part the logged training loss.
            max_bad_steps: training stops after so many steps without a finite gradient.

        Raises:
            ValueError: if label_dropout is no probability, or is asked of a model without condition.
        """
        super().__init__()
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}")
        if label_dropout and not denoiser.conditional:
            raise ValueError(
                f"label_dropout={label_dropout} needs a model with labels or embeddings, this one has num_classes=0"
            )
        self.denoiser, self.loss = denoiser, loss
        self.learning_rate = learning_rate or InverseSqrtRate()
        self.optimizer: Callable[[Any], torch.optim.Optimizer] | None = optimizer
        self.label_dropout, self.seed = label_dropout, seed
        self.evaluations = GuidedEvaluations(under_guidances(evaluations or {}, guidances or {}), metrics or {})
        self._prediction = GuidedEvaluations({"prediction": prediction or Evaluation()}, {})
        self.average, self.images = average, images
        self.images_seen = 0
        self.planned_images: int | None = None
        self._pending_images = 0
        self._heldout = HeldoutLoss(heldout_sigmas, seed=seed)
        self._means = NoiseLevelMeans(bin_edges)
        self._guard = GradientGuard(max_bad_steps)
        self._main: list[Denoiser] = []  # in a list: it must not become a submodule

    # Set-up

    def setup(self, stage: str) -> None:
        """Checks that data and network fit, sets the clock to 0 and fixes the planned length of the run.

        Raises:
            ValueError: if data and network do not fit, or an evaluation needs a snapshot that another run lacks, or an
                average that no callback keeps.
        """
        self._check_fits_data(self.denoiser)
        if self.denoiser.conditional and not self.label_dropout:
            (self._prediction if stage == "predict" else self.evaluations).warn_of_dropped_conditions()
        if stage == "fit":
            self.evaluations.check(OtherRuns(self.denoiser, self.trainer.default_root_dir))
            if self.average is not None and self.trainer.enable_validation:
                keeper(self.trainer.callbacks, self.average)  # type: ignore[attr-defined]
        if stage == "fit" and self.global_step == 0:  # a checkpoint, if there is one, is restored later
            self.images_seen = self._pending_images = 0
            steps = self.trainer.max_steps
            self.planned_images = steps * self.images_per_step if steps > 0 else None
            warn_if_nothing_stores(self.evaluations.evaluations, self.trainer, self.planned_images)

    def _check_fits_data(self, denoiser: Denoiser) -> None:
        """Refuses a model of another data shape, class count or kind of embedding."""
        data = self._data
        if tuple(data.data_shape) != tuple(denoiser.data_shape):
            shapes = f"{tuple(data.data_shape)}, the network expects {tuple(denoiser.data_shape)}"
            raise ValueError(f"the data has shape {shapes}")
        if denoiser.num_classes and data.num_classes != denoiser.num_classes:
            raise ValueError(f"the data has {data.num_classes} classes, the network {denoiser.num_classes}")
        if denoiser.token_channels and data.token_channels != denoiser.token_channels:
            raise ValueError(
                f"the data has embeddings of {data.token_channels} channels (0 is none), the network reads "
                f"{denoiser.token_channels} (token_channels)"
            )

    @property
    def images_per_step(self) -> int:
        """Images in one optimizer step, over all processes and micro-steps."""
        micro = int(self._data.batch_size)
        return micro * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """(sample indices, batch size) of each sampling loop of `stage`, in the order of the loops.

        Raises:
            ValueError: if a process would have nothing at all to draw: Lightning would leave it out, and the others
                would wait for it.
        """
        chosen = (self._prediction if stage == "predict" else self.evaluations).evaluations
        most = max((e.num_samples for e in chosen.values()), default=0)
        world = 1 if self._trainer is None else self.trainer.world_size
        if stage in ("test", "predict") and 0 < most < world:
            raise ValueError(f"{stage}: num_samples is at most {most}; {world} processes need at least one sample each")
        count = len(self._data.prompts()) if chosen and self.denoiser.token_channels else self.denoiser.num_classes
        return [(e.dataset(count), e.batch_size) for e in chosen.values()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer alone: the rate follows the images, see `optimizer_step`."""
        scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        return (self.optimizer or adam(scaled=scaled))(self.parameters())

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean objective of one micro-batch."""
        draw = mix(self.seed, "train", self.images_seen + self._pending_images, self.global_rank)
        torch.manual_seed(draw)  # dropout inside the network draws from the global generator
        generator = torch.Generator(self.device).manual_seed(draw)
        condition = batch.condition
        if condition is not None and self.label_dropout:
            dropped = torch.rand(len(condition), generator=generator, device=self.device) < self.label_dropout
            condition = without(condition, dropped)
        terms = self.loss(self.denoiser, batch.x, condition, generator)
        self._pending_images += len(batch.x) * self.trainer.world_size
        self._means.update(terms)
        objective = terms.objective.mean()
        self.log("loss", objective.detach(), prog_bar=True, logger=False, batch_size=len(batch.x))
        return objective

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Zeroes and counts gradient elements that are not finite."""
        average_gradients_(self)
        self._guard.sanitise(self, self.global_step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step at the rate of `images_seen`; then the images count, and weights are normalised."""
        rate = self.learning_rate.at(self.images_seen)
        for group in optimizer.param_groups:
            group["lr"] = rate
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.images_seen += self._pending_images
        self._pending_images = 0
        self.denoiser.constrain()
        self.loss.constrain()
        step = self.global_step + 1  # it is counted after this hook
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            means = self._means.report(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))
            report = {f"train/{key}": value for key, value in means.items()}
            report |= {"train/learning_rate": rate, "train/zeroed_gradients": self._guard.zeroed}
            for logger in self.loggers:
                logger.log_metrics(report | {"images_seen": self.images_seen}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the clock and the count of bad gradients."""
        checkpoint["clock"] = {"images_seen": self.images_seen, "planned_images": self.planned_images}
        checkpoint["gradient_guard"] = {"zeroed": self._guard.zeroed, "bad_steps": self._guard.bad_steps}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores both."""
        clock, guard = checkpoint["clock"], checkpoint["gradient_guard"]
        self.images_seen, self.planned_images = clock["images_seen"], clock["planned_images"]
        self._guard.zeroed, self._guard.bad_steps = guard["zeroed"], guard["bad_steps"]

    # Evaluation

    def _begin_evaluations(self, evaluations: GuidedEvaluations) -> None:
        """Finds the model under evaluation and the guiders; all ranks wait until rank 0 has written its snapshots."""
        self.trainer.strategy.barrier()
        models = RunModels(
            self._main_model(),
            run=self.trainer.default_root_dir,
            device=self.device,
            until=self.images_seen if self._fitting else None,
        )
        self._check_fits_data(models.main)
        evaluations.begin(models, self._data, self.device, training=self._fitting)
        self._main = [models.main]

    @property
    def _fitting(self) -> bool:
        return self.trainer.state.fn == "fit"

    def _main_model(self) -> Denoiser:
        """The average under evaluation: alive in a callback while training, from the snapshots afterwards."""
        if self.average is None or self.trainer.sanity_checking:  # nothing is averaged before the first step
            return whole(self.denoiser)
        if not self._fitting:
            return finished_model(self.trainer.default_root_dir, self.images, self.average).to(self.device)
        return keeper(self.trainer.callbacks, self.average).live(self.average)  # type: ignore[attr-defined]

    def on_validation_epoch_start(self) -> None:
        """Resolves guidances and starts the sums anew."""
        self._begin_evaluations(self.evaluations)
        self._heldout.reset(self.device)

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self._begin_evaluations(self.evaluations)

    def on_predict_epoch_start(self) -> None:
        """Resolves the guidance of the prediction."""
        self._begin_evaluations(self._prediction)

    def validation_step(  # type: ignore[override]
        self, batch: Batch | SampleBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> DrawnSamples | None:
        """Held-out loss of a `Batch`, or one batch of samples of the loop that `dataloader_idx` names."""
        if isinstance(batch, SampleBatch):
            return self.evaluations.step(dataloader_idx - 1, batch, self._data)
        world, size = self.trainer.world_size, int(self._data.batch_size)
        indices = [self.global_rank + world * (batch_idx * size + j) for j in range(len(batch.x))]
        self._heldout.update(self.loss, self._main[0], batch, indices)
        return None

    def test_step(  # type: ignore[override]
        self, batch: SampleBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> DrawnSamples | None:
        """One batch of samples of loop `dataloader_idx`."""
        return self.evaluations.step(dataloader_idx, batch, self._data)

    def predict_step(self, batch: SampleBatch, batch_idx: int, dataloader_idx: int = 0) -> DrawnSamples | None:
        """One batch of the prediction's samples."""
        return self._prediction.step(0, batch, self._data)

    def on_validation_epoch_end(self) -> None:
        """Logs held-out losses and all evaluations."""
        self._report({f"heldout/{key}": value for key, value in self._heldout.compute().items()})

    def on_test_epoch_end(self) -> None:
        """Logs all evaluations."""
        self._report({})

    def _report(self, values: dict[str, float]) -> None:
        """One reduction on all ranks, then numbers to loggers and the progress output."""
        for name, metrics in self.evaluations.finish(self.device).items():
            values |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        values |= {f"{name}/skipped": 1.0 for name in self.evaluations.skipped}
        if self._fitting:
            values["step"] = float(self.global_step)  # where loggers put these values; by default one step too early
        # they are equal on all ranks already; asked for their mean, Lightning need not warn about each of them
        self.log_dict(values, sync_dist=True, batch_size=1)
