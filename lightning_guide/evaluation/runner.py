"""Run named evaluations: metrics prepared once, one sampling loop each, results and failures by name."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import _TunerExitException
from torch import nn

from lightning_guide.data import DataInterface, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation, check_names
from lightning_guide.evaluation.features.base import FeatureExtractor, Identity
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.sampling_loop import DrawnSamples, SamplingLoop
from lightning_guide.snapshots import SnapshotMissing
from lightning_guide.utils.distributed import all_gather_objects, run_on_all_ranks
from lightning_guide.utils.errors import as_value_error, explain_runtime_error

__all__ = ["Failures", "GuidedEvaluations", "StrictEvaluations"]


class Failures:
    """What failed in an evaluation, in place of an error that would end the training.

    Attributes:
        failed: "evaluation 'NAME'", "held-out loss", or the name of a callback that draws samples -> reason.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.failed: dict[str, str] = {}

    @contextmanager
    def contain(self, what: str) -> Iterator[None]:
        """Record an exception of the body in `failed` under `what`; interrupts, exits and requested stops pass.

        With LIGHTNING_GUIDE_TRACEBACK=1 in the environment the traceback is shown.
        """
        try:
            yield
        except _TunerExitException:
            raise
        except Exception as error:
            if os.environ.get("LIGHTNING_GUIDE_TRACEBACK"):
                traceback.print_exc()
            text = explain_runtime_error(str(error)) or " ".join(str(error).split())[:500]
            self.failed[what] = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"

    def all_failed(self) -> dict[str, str]:
        """Return `failed` of all ranks. Every rank must call this."""
        return {what: reason for failed in all_gather_objects(self.failed) for what, reason in failed.items()}


class GuidedEvaluations(Failures):
    """Named evaluations of one model. Not a module: its metrics and guiders stay out of checkpoints and DDP.

    An evaluation that fails on any rank is left out on all of them, and the others continue.

    Attributes:
        results: evaluation -> metric -> value, of the newest finished evaluations.
        skipped: evaluation -> reason, of those whose guider is not stored yet.
    """

    def __init__(self, evaluations: Mapping[str, Evaluation], metrics: Mapping[str, SampleMetric]) -> None:
        """Take the evaluations and the default `metrics` of those without their own.

        Raises:
            ValueError: if an evaluation has no samples, with its name, or a name is no text.
        """
        super().__init__()
        self.evaluations, self.metrics = dict(evaluations), dict(metrics)
        check_names("evaluations", self.evaluations)
        check_names("metrics", self.metrics)
        for name, evaluation in self.evaluations.items():
            check_names(f"metrics of the evaluation {name!r}", evaluation.metrics or {})
            for key, value in (("num_samples", evaluation.num_samples), ("batch_size", evaluation.batch_size)):
                if value < 1:
                    raise ValueError(f"evaluation {name!r} needs {key} >= 1, got {value}")
        self.results: dict[str, dict[str, float]] = {}
        self.skipped: dict[str, str] = {}
        self._announced: set[str] = set()  # skipped evaluations, named once
        self._loops: list[SamplingLoop | None] = []
        self._finished = 0  # loops, in their order
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
        chosen = {name: self.metrics_of(self.evaluations[name]) for name in self.results}
        return {
            name: {key: [str(each) for each in metric.extractors] for key, metric in metrics.items()}
            for name, metrics in chosen.items()
        }

    def metrics_of(self, evaluation: Evaluation) -> dict[str, SampleMetric]:
        """Return the metrics of one of the evaluations: its own, or the default ones."""
        return self.metrics if evaluation.metrics is None else evaluation.metrics

    def missing(self, find: Callable[[GuidedEvaluations], Iterator[str]]) -> Iterator[str]:
        """Yield what `find` misses in these evaluations before they start."""
        yield from find(self)

    def start(self, models: Models, data: DataInterface, device: torch.device, *, training: bool) -> None:
        """Resolve every guidance; while `training`, skip one whose guider is not stored yet, with a message."""
        self.results, self.skipped, self.failed, self._loops, self._finished = {}, {}, {}, [], 0
        for name, evaluation in self.evaluations.items():
            self._loops.append(None)
            with self.contain(f"evaluation {name!r}"):
                metrics = self.metrics_of(evaluation)
                ready = {key: self._prepare(metric, data, device) for key, metric in metrics.items()}
                try:
                    self._loops[-1] = SamplingLoop.start(name, evaluation, models, ready)
                except SnapshotMissing as missing:
                    if not (training and missing.not_yet):
                        raise
                    self.skipped[name] = str(missing).partition("; ")[0]  # without the list of those that exist
                    if name not in self._announced:
                        rank_zero_info(f"evaluation {name!r} is skipped for now: {self.skipped[name]}")
                    self._announced.add(name)
        self.agree()

    def _prepare(self, metric: SampleMetric, data: DataInterface, device: torch.device) -> SampleMetric:
        """Return a prepared copy of `metric`; the real data are read once for each configured metric."""
        if id(metric) not in self._prepared:
            run_on_all_ranks(lambda: self.share_extractors(metric))
            prepared = metric.to(device)
            prepared.prepare(data.reference(device))
            self._prepared[id(metric)] = prepared
        return cast(SampleMetric, self._prepared[id(metric)].clone())

    def share_extractors(self, owner: nn.Module) -> None:
        """Give `owner`, a metric or an extractor, the extractors of other metrics with the same configuration.

        Raises:
            ValueError: if the weights of one cannot be found.
        """
        for key, part in list(owner.named_children()):
            if isinstance(part, FeatureExtractor):
                self.share_extractors(part)  # first those that it takes its features from
                setattr(owner, key, self._extractors.setdefault(part.identity, part))

    def step(self, number: int, batch: SampleBatch, data: DataInterface) -> DrawnSamples | None:
        """Draw one batch of loop `number`; return None if that evaluation is skipped or has failed."""
        loop = self._loops[number]
        if loop is not None:
            with self.contain(f"evaluation {loop.name!r}"):
                return loop.draw(batch, data)
            self._loops[number] = None
        return None

    def finish(self, device: torch.device, *, until: int | None = None) -> dict[str, dict[str, float]]:
        """Reduce the metrics of the first `until` evaluations over all processes, each once: name -> metric -> value.

        By default all; only then are their models released. Every rank must finish all evaluations at last.
        """
        for number in range(self._finished, len(self._loops) if until is None else until):
            self.agree()
            self._finished = number + 1
            if (loop := self._loops[number]) is not None:
                self._reduce(loop, device)
        if until is None:
            self.agree()
            self._loops = []
        return self.results

    def _reduce(self, loop: SamplingLoop, device: torch.device) -> None:
        """Add what a loop has found to `results`, on every rank."""
        found = loop.finish(device, contain=self.contain)
        self.agree()
        if f"evaluation {loop.name!r}" not in self.failed:
            self.results = {**self.results, loop.name: found}

    def agree(self) -> None:
        """Leave out, on every rank, the evaluations that failed or are skipped on any of them."""
        self.failed = self.all_failed()
        self.skipped = {name: why for skipped in all_gather_objects(self.skipped) for name, why in skipped.items()}
        out = {f"evaluation {name!r}" for name in self.skipped} | set(self.failed)
        self._loops = [None if loop is None or f"evaluation {loop.name!r}" in out else loop for loop in self._loops]


class StrictEvaluations(GuidedEvaluations):
    """Evaluations of which the first error ends all: a prediction, or the points of a search."""

    @contextmanager
    def contain(self, what: str) -> Iterator[None]:
        """Record nothing; raise whatever fails as a ValueError with `what` before its message."""
        try:
            with as_value_error():
                yield
        except ValueError as error:
            error.args = (f"{what}: {error}",)
            raise

    def agree(self) -> None:
        """Compare nothing: no rank leaves out an evaluation."""
