"""Run named evaluations: metrics prepared once, one sampling loop each, results by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_guide.data import DataInterface, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.features.base import FeatureExtractor, Identity
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.sampling_loop import DrawnSamples, SamplingLoop
from lightning_guide.guidance.base import Main, Snapshot
from lightning_guide.guidance.negatives.cfg import Unconditional
from lightning_guide.snapshots import SnapshotMissing

__all__ = ["GuidedEvaluations"]


class GuidedEvaluations:
    """Named evaluations of one model. Not a module: its metrics and guiders stay out of checkpoints and DDP."""

    def __init__(self, evaluations: Mapping[str, Evaluation], metrics: Mapping[str, SampleMetric]) -> None:
        """Take the evaluations and the default `metrics` of those without their own.

        Raises:
            ValueError: if an evaluation has no samples, with its name.
        """
        self.evaluations, self.metrics = dict(evaluations), dict(metrics)
        for name, evaluation in self.evaluations.items():
            for key, value in (("num_samples", evaluation.num_samples), ("batch_size", evaluation.batch_size)):
                if value < 1:
                    raise ValueError(f"evaluation {name!r} needs {key} >= 1, got {value}")
        self.results: dict[str, dict[str, float]] = {}
        self.skipped: dict[str, str] = {}
        self._loops: list[SamplingLoop | None] = []
        self._prepared: dict[int, SampleMetric] = {}
        self._extractors: dict[Identity, FeatureExtractor] = {}

    @property
    def names(self) -> list[str]:
        """Names in the order of the loops."""
        return list(self.evaluations)

    @property
    def resolved(self) -> dict[str, Denoiser]:
        """Guidances of the running evaluations with models in place of references; empty after they have finished."""
        return {loop.name: loop.denoiser for loop in self._loops if loop is not None}

    @property
    def extractors(self) -> dict[str, dict[str, list[str]]]:
        """Evaluation -> metric -> identities of its feature extractors, of the newest results."""
        chosen = {name: self._metrics_of(self.evaluations[name]) for name in self.results}
        return {
            name: {key: [str(each) for each in metric.extractors] for key, metric in metrics.items()}
            for name, metrics in chosen.items()
        }

    def _metrics_of(self, evaluation: Evaluation) -> dict[str, SampleMetric]:
        return self.metrics if evaluation.metrics is None else evaluation.metrics

    def check(self, models: Models) -> None:
        """Resolve every guidance once and discard it, to fail before training if a guider can never exist.

        Raises:
            ValueError: with the name of the evaluation.
        """
        for name, evaluation in self.evaluations.items():
            try:
                evaluation.resolve(models)
            except ValueError as error:
                error.args = (f"evaluation {name!r}: {error}",)
                raise

    def warn_of_dropped_conditions(self) -> None:
        """Warn of evaluations that require an unconditional branch, for a model trained without label dropout."""
        for name, evaluation in self.evaluations.items():
            dropped = [part.positive for part in evaluation.guidance.modules() if isinstance(part, Unconditional)]
            if any(_of_this_run(model) for part in dropped for model in part.modules()):
                rank_zero_warn(
                    f"evaluation {name!r} requires predictions without a condition, but the model is trained "
                    "with label_dropout 0; set it (usual: 0.1), or name an unconditional network"
                )

    def start(self, models: Models, data: DataInterface, device: torch.device, *, training: bool) -> None:
        """Resolve every guidance; while `training`, skip one whose guider is not stored yet, with a message.

        Raises:
            SnapshotMissing: if a guider can never exist, or does not exist and this run is not training.
            ValueError: if a guider does not fit the main model.
        """
        self.results, self.skipped, self._loops = {}, {}, []
        for name, evaluation in self.evaluations.items():
            try:
                metrics = self._metrics_of(evaluation)
                ready = {key: self._prepare(metric, data, device) for key, metric in metrics.items()}
                self._loops.append(SamplingLoop.start(name, evaluation, models, ready))
            except SnapshotMissing as missing:
                if not (training and missing.not_yet):
                    missing.args = (f"evaluation {name!r}: {missing}",)
                    raise
                self._loops.append(None)
                self.skipped[name] = str(missing)
                rank_zero_info(f"evaluation {name!r} is skipped for now: {missing}")
            except ValueError as error:
                error.args = (f"evaluation {name!r}: {error}",)
                raise

    def _prepare(self, metric: SampleMetric, data: DataInterface, device: torch.device) -> SampleMetric:
        """Return a prepared copy of `metric`; the real data are read once for each configured metric."""
        if id(metric) not in self._prepared:
            for key, part in list(metric.named_children()):
                if isinstance(part, FeatureExtractor):  # one network for all with the same configuration
                    setattr(metric, key, self._extractors.setdefault(part.identity, part))
            prepared = metric.to(device)
            prepared.prepare(data.reference(device))
            self._prepared[id(metric)] = prepared
        return cast(SampleMetric, self._prepared[id(metric)].clone())

    def step(self, number: int, batch: SampleBatch, data: DataInterface) -> DrawnSamples | None:
        """Draw one batch of loop `number`; return None if that evaluation is skipped."""
        loop = self._loops[number]
        return None if loop is None else loop.draw(batch, data)

    def finish(self, device: torch.device) -> dict[str, dict[str, float]]:
        """Reduce all metrics over all processes: evaluation -> metric -> value."""
        self.results = {loop.name: loop.finish(device) for loop in self._loops if loop is not None}
        self._loops = []
        return self.results


def _of_this_run(model: torch.nn.Module) -> bool:
    """Return whether `model` refers to the model in training or to an earlier snapshot of it."""
    return isinstance(model, Main) or (isinstance(model, Snapshot) and model.run is None)
