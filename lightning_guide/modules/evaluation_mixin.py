"""Guided evaluation in the loops of validation, test and prediction: base of the diffusion modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from lightning_guide.data import Batch, DataInterface, SampleBatch, data_of
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.ema import Average
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.requirements import EvaluationNeeds
from lightning_guide.evaluation.runner import Failures, GuidedEvaluations, StrictEvaluations
from lightning_guide.evaluation.sampling_loop import DrawnSamples, SampleStore, prompts_of
from lightning_guide.modules.needs import (
    check_fits_data,
    count_labels,
    report_failures,
    require_needs,
    samples_drawn,
    warn_of,
)
from lightning_guide.network import Network
from lightning_guide.runs.checkpoints import images_per_step
from lightning_guide.runs.models import RunModels, evaluated_images, find_average, finished_model
from lightning_guide.training.losses import TrainingLoss
from lightning_guide.training.monitor import HeldoutLoss
from lightning_guide.training.sharding import ShardedTraining, unshard

__all__ = ["EvaluatedModule"]

_HELDOUT = "held-out loss"


class EvaluatedModule(ShardedTraining):
    """Evaluation part of diffusion modules: samples under named guidances, and held-out loss, of `denoiser`.

    Validation evaluates an average that a callback tracks, or the raw weights. Test and prediction load a snapshot of
    the finished run.

    Attributes:
        evaluations: evaluations of validation and test, with their newest results.
        images_seen: images of training seen so far, over all processes.
        label_dropout: share of the examples that train without their condition.
        evaluated_images: images of training that the model of the newest evaluations has seen.
        evaluated_step: optimizer steps in which it saw them, x of the results in loggers; after training by the images
            in one step of the fit, or of the present config if the run has no checkpoint.
        run: folder of the run whose snapshots are evaluated after training; None: trainer.default_root_dir, where
            results are written.
    """

    run: str | Path | None = None
    label_dropout: float = 0.0

    def __init__(
        self,
        denoiser: Denoiser,
        loss: TrainingLoss | None,
        *,
        seed: int,
        evaluations: Mapping[str, Evaluation],
        prediction: Evaluation,
        metrics: Mapping[str, SampleMetric],
        average: float | Literal["half_life"] | None,
        images: int | float | str | None,
        heldout_sigmas: Sequence[float],
    ) -> None:
        """Configure evaluation; the arguments are those of `DiffusionModule`."""
        super().__init__()
        self.denoiser, self.loss = denoiser, loss
        self.evaluations = GuidedEvaluations(evaluations, metrics)
        self._prediction = StrictEvaluations({"prediction": prediction}, {})
        self.average, self.images = None if average is None else Average.of(average), images
        self.images_seen = self.evaluated_images = self.evaluated_step = 0
        self._heldout = HeldoutLoss(heldout_sigmas, seed=seed)
        self._main: list[Denoiser] = []  # in a list: it must not become a submodule

    @property
    def failures(self) -> Failures:
        """What failed in the newest evaluations."""
        return self.evaluations

    @property
    def prediction(self) -> GuidedEvaluations:
        """Sampling loop of `predict`, the only one, called "prediction"."""
        return self._prediction

    @property
    def _data(self) -> DataInterface:
        return data_of(self.trainer)

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """Return (sample indices, batch size) of each sampling loop of `stage`, in the order of the loops.

        Raises:
            ValueError: if a process would have no samples to draw: Lightning would skip its loops, and the other
                processes would wait for it.
        """
        chosen = (self._prediction if stage == "predict" else self.evaluations).evaluations
        most = max((e.num_samples for e in chosen.values()), default=0)
        world = 1 if self._trainer is None else self.trainer.world_size
        if stage in ("test", "predict") and 0 < most < world:
            raise ValueError(f"{stage}: num_samples is at most {most}; {world} processes need at least one sample each")
        return [(e.dataset(self._num_labels), e.batch_size) for e in chosen.values()]

    def _start_evaluations(self, evaluations: GuidedEvaluations) -> None:
        """Resolve the evaluated model and the guiders, after all ranks waited for rank 0 to write its snapshots."""
        self.trainer.strategy.barrier()
        models = RunModels(
            self._main_model(),
            run=self._run,
            device=self.device,
            until=self.images_seen if self._fitting else None,
            prompts=prompts_of(self._data, self.denoiser),
        )
        check_fits_data(self._data, models.main)
        if not self._fitting:
            needs = self._needs(models)
            require_needs(self, lambda: evaluations.missing(lambda each: needs.missing(each, lambda _: iter(()))))
            warn_of(needs)
        evaluations.start(models, self._data, self.device, training=self._fitting)
        self._main = [models.main]
        self.evaluated_images, self.evaluated_step = self._find_evaluated()

    def _find_evaluated(self) -> tuple[int, int]:
        """Return images and steps of the evaluated model."""
        if self._fitting:
            return self.images_seen, self.global_step
        images = self.images_seen  # of the checkpoint whose raw weights were loaded
        if self.average is not None:
            images = evaluated_images(self._run, self.images, self.average)
        return images, round(images / (images_per_step(self._run) or self.images_per_step))

    @property
    def images_per_step(self) -> int:
        """Images in one optimizer step, over all processes and micro-steps."""
        return self._data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def _needs(self, models: Models) -> EvaluationNeeds:
        """Return the checks of evaluations of `models.main`."""
        trainer: Any = self.trainer
        limits = {"fit": trainer.limit_val_batches, "validate": trainer.limit_val_batches}
        limit = limits.get(trainer.state.fn, trainer.limit_test_batches)
        return EvaluationNeeds(
            models,
            self._data,
            self.device,
            num_classes=self._num_labels,
            drawn=lambda evaluation: samples_drawn(evaluation, limit, trainer.world_size),
            dropout=self.label_dropout > 0 or not self.denoiser.conditional or _has_null_condition(self.denoiser),
        )

    @property
    def _num_labels(self) -> int:
        """Number of classes or prompts that labels are drawn from."""
        return count_labels(lambda: self._data, self.denoiser)

    @property
    def _run(self) -> str | Path:
        """Folder of the run that is trained or evaluated."""
        return self.trainer.default_root_dir if self._fitting or self.run is None else self.run

    @property
    def _fitting(self) -> bool:
        return self.trainer.state.fn == "fit"

    def _main_model(self) -> Denoiser:
        """Return the evaluated average: that of a callback during training, a snapshot afterwards."""
        if self.average is None or self.trainer.sanity_checking:  # nothing is averaged before the first step
            return unshard(self.denoiser)
        if not self._fitting:
            shared = [] if (model := self.denoiser.unadapted) is None else [model]
            # a wait for each weight, once in a command: it is read by the host
            return finished_model(self._run, self.images, self.average, shared=shared).to(self.device)
        return find_average(self.trainer.callbacks, self.average).live(self.average)  # type: ignore[attr-defined]

    def on_validation_epoch_start(self) -> None:
        """Resolve guidances and reset accumulators."""
        self._start_evaluations(self.evaluations)
        self._heldout.reset(self.device)

    def on_test_epoch_start(self) -> None:
        """Resolve guidances."""
        self._start_evaluations(self.evaluations)

    def on_predict_epoch_start(self) -> None:
        """Resolve the guidance of the prediction."""
        self._start_evaluations(self._prediction)

    def validation_step(  # type: ignore[override]
        self, batch: Batch | SampleBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> DrawnSamples | None:
        """Add the held-out loss of a `Batch`, or draw one batch of samples of evaluation `dataloader_idx` - 1."""
        if isinstance(batch, SampleBatch):
            last = batch_idx + 1 == self.trainer.num_val_batches[dataloader_idx]
            return self._draw(dataloader_idx - 1, batch, last=last)
        world, size = self.trainer.world_size, self._data.batch_size
        indices = [self.global_rank + world * (batch_idx * size + j) for j in range(len(batch.x))]
        if self.loss is not None and _HELDOUT not in self.evaluations.failed:
            with self.evaluations.contain(_HELDOUT):
                self._heldout.update(self.loss, self._main[0], batch, indices)
        return None

    def test_step(  # type: ignore[override]
        self, batch: SampleBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> DrawnSamples | None:
        """Draw one batch of samples of evaluation `dataloader_idx`."""
        last = batch_idx + 1 == self.trainer.num_test_batches[dataloader_idx]
        return self._draw(dataloader_idx, batch, last=last)

    def _draw(self, number: int, batch: SampleBatch, *, last: bool) -> DrawnSamples | None:
        """Draw a batch of an evaluation; after its `last` one its results are there, whatever ends the others.

        In a fit an evaluation that was left is repeated, and processes agree on stops between batches.
        """
        drawn = self.evaluations.step(number, batch, self._data)
        if last and not self._fitting:
            self.evaluations.finish(self.device, until=number + 1)
        return drawn

    def predict_step(self, batch: SampleBatch, batch_idx: int, dataloader_idx: int = 0) -> DrawnSamples | None:
        """Draw one batch of samples of the prediction; return None if callbacks store them already."""
        stores = [each for each in self.trainer.callbacks if isinstance(each, SampleStore)]  # type: ignore[attr-defined]
        if stores and all(store.holds(batch.index) for store in stores):
            return None
        return self._prediction.step(0, batch, self._data)

    def on_validation_epoch_end(self) -> None:
        """Log held-out losses and all evaluations."""
        self._report(self._heldout.compute())

    def on_test_epoch_end(self) -> None:
        """Log all evaluations."""
        self._report({})

    def on_validation_end(self) -> None:
        """Report failures, after callbacks have written a checkpoint."""
        if not self.trainer.sanity_checking:
            report_failures(self.evaluations, fitting=self._fitting)

    def on_test_end(self) -> None:
        """Report failures."""
        report_failures(self.evaluations, fitting=False)

    def _report(self, heldout: dict[str, float]) -> None:
        """Reduce the results over all ranks and log them with the losses `heldout`, unless these failed."""
        results = self.evaluations.finish(self.device)
        values = {f"heldout/{key}": value for key, value in heldout.items() if _HELDOUT not in self.evaluations.failed}
        for name, metrics in results.items():
            values |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        values |= {f"{name}/skipped": 1.0 for name in self.evaluations.skipped}
        if not self._fitting:
            values["images_seen"] = float(self.evaluated_images)
        values["step"] = float(self.evaluated_step)  # x of these values in loggers
        # the values are equal on all ranks already; sync_dist only avoids a warning of Lightning about each of them;
        # it waits once for each of them, at the end of a validation
        self.log_dict(values, sync_dist=True, batch_size=1)


def _has_null_condition(denoiser: Denoiser) -> bool:
    """Return whether a network of `denoiser` came trained for no condition."""
    return any(isinstance(module, Network) and module.null_condition for module in denoiser.modules())
