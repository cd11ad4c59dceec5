"""Needs of modules and their callbacks, checked when a run starts, and failures of evaluations, reported at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_guide.data import DataInterface
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.planned_guiders import PlannedSnapshots
from lightning_guide.evaluation.requirements import EvaluationNeeds
from lightning_guide.evaluation.runner import Failures, GuidedEvaluations
from lightning_guide.network import Network
from lightning_guide.runs.class_names import check_class_names
from lightning_guide.training.trainer_settings import ignored_settings
from lightning_guide.utils.needs import require

__all__ = [
    "CallbackNeeds",
    "check_fits_data",
    "count_labels",
    "fit_needs",
    "report_failures",
    "require_needs",
    "samples_drawn",
    "warn_of",
]


@runtime_checkable
class CallbackNeeds(Protocol):
    """A callback that checks what it will use in a fit."""

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield one sentence for each need that is not met."""


def check_fits_data(data: DataInterface, denoiser: Denoiser) -> None:
    """Check that `data` and `denoiser` agree in shape, number and names of classes, and channels of embeddings.

    Raises:
        ValueError: naming the first that differs.
    """
    if tuple(data.data_shape) != tuple(denoiser.data_shape):
        shapes = f"{tuple(data.data_shape)}, the network expects {tuple(denoiser.data_shape)}"
        options = "model.denoiser.init_args.data_shape and data.data_shape"
        raise ValueError(f"the data has shape {shapes}; expected the same, as {options}")
    if denoiser.num_classes and data.num_classes != denoiser.num_classes:
        raise ValueError(f"the data has {data.num_classes} classes, the network {denoiser.num_classes}")
    check_class_names(getattr(data, "class_names", None), denoiser.class_names, of="the network")
    if denoiser.token_channels and data.token_channels != denoiser.token_channels:
        raise ValueError(
            f"the data has embeddings of {data.token_channels} channels (0: no embeddings), the network reads "
            f"{denoiser.token_channels} (token_channels)"
        )


def count_labels(data: Callable[[], DataInterface], denoiser: Denoiser) -> int:
    """Return the number of classes of `denoiser`, or of prompts of `data()`, that labels of samples are drawn from."""
    return len(data().prompts()) if denoiser.token_channels else denoiser.num_classes


def require_needs(module: pl.LightningModule, own: Callable[[], Iterable[str]]) -> None:
    """Check the `own` needs of a module; when a fit starts those of all callbacks and the trainer's settings, too.

    Raises:
        MissingNeedsError: listing everything that is missing, on every rank.
    """
    trainer = module.trainer

    def find() -> Iterator[str]:
        fitting = trainer.state.fn == "fit"
        if fitting:
            yield from ignored_settings(trainer)
            if any(isinstance(each, Network) and each.offloaded for each in module.modules()):
                yield "the weights of a network that is offloaded cannot be trained; expected offload: false"
        yield from own()
        for callback in trainer.callbacks if fitting else ():  # type: ignore[attr-defined]
            if isinstance(callback, CallbackNeeds):
                yield from callback.missing(trainer, module)

    require(find)


def fit_needs(
    evaluations: GuidedEvaluations, needs: EvaluationNeeds, planned: PlannedSnapshots, trainer: Any
) -> Iterator[str]:
    """Yield what `evaluations` will miss in a fit; warn of guidances without effect and of evaluations to be skipped.

    A fit without validation, or a trial, needs only the guiders of other runs.
    """
    if trainer.enable_validation and not trainer.fast_dev_run:
        yield from needs.missing(evaluations, planned.missing)
        for name, evaluation in evaluations.evaluations.items():
            needs.notes.setdefault(name, []).extend(
                f"it will be skipped, since {each}" for each in planned.beyond(evaluation.guidance)
            )
    else:
        yield from needs.unresolved(evaluations)
    warn_of(needs)


def warn_of(needs: EvaluationNeeds) -> None:
    """Warn once of each note."""
    for name, notes in needs.notes.items():
        for note in notes:
            rank_zero_warn(f"evaluation {name!r}: {note}")


def samples_drawn(evaluation: Evaluation, limit: int | float, world: int) -> int:
    """Return the samples of each repetition of `evaluation` if `limit` batches, or a share of them, are drawn."""
    total = evaluation.num_samples * evaluation.repetitions
    batches = -(-total // (world * evaluation.batch_size))
    kept = min(limit if isinstance(limit, int) else int(batches * limit), batches)
    drawn = total if kept == batches else kept * world * evaluation.batch_size
    return max(min(evaluation.num_samples, drawn - (evaluation.repetitions - 1) * evaluation.num_samples), 0)


def report_failures(failures: Failures, *, fitting: bool) -> None:
    """Warn of evaluations, losses and callbacks that failed on any rank, if `fitting`; every rank must call this.

    Raises:
        ValueError: naming them, if not `fitting`.
    """
    sentences = [f"{what} failed: {reason}" for what, reason in failures.all_failed().items()]
    if sentences and not fitting:
        raise ValueError("; ".join(sentences))
    for sentence in sentences:
        rank_zero_warn(f"{sentence}; it is left out, a checkpoint was written, and training continues")
