"""What evaluations need, found before a run begins: guiders, networks, labels, statistics, numbers of samples.

`EvaluationNeeds` also finds guidances that will have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from lightning_guide.data import Batch, DataInterface
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.rehearsal import rehearse, steps_of
from lightning_guide.evaluation.runner import GuidedEvaluations
from lightning_guide.guidance.base import Guidance, Main, Reference, Snapshot
from lightning_guide.guidance.negatives.cfg import Unconditional
from lightning_guide.inference import check_graphs
from lightning_guide.utils.needs import attempt, needs_of

__all__ = ["EvaluationNeeds"]


@dataclass
class EvaluationNeeds:
    """Needs of named evaluations of one model.

    Attributes:
        models: the model under evaluation and its guiders, as far as they exist.
        data: the data that metrics compare with.
        device: of the models.
        num_classes: classes or prompts that labels are drawn from.
        drawn: number of samples of an evaluation, each repetition by itself.
        dropout: whether the model was trained to predict without its condition.
        notes: evaluation -> sentences about guidances without effect; filled by `missing`.
    """

    models: Models
    data: DataInterface
    device: torch.device
    num_classes: int
    drawn: Callable[[Evaluation], int]
    dropout: bool
    notes: dict[str, list[str]] = field(default_factory=dict)

    def missing(self, evaluations: GuidedEvaluations, guiders: Callable[[Denoiser], Iterator[str]]) -> Iterator[str]:
        """Yield one sentence for each need, which names all evaluations that have it.

        `guiders` yields the snapshots of this run that a guidance needs and will not find.
        """
        names: dict[str, list[str]] = {}
        checked: dict[tuple[int, int, object], list[str]] = {}
        for name, evaluation in evaluations.evaluations.items():
            sample, found = self._guidance(name, evaluation, guiders)
            for metric in evaluations.metrics_of(evaluation).values():
                # waits: once for each metric, before the first step
                shape = None if sample is None else (tuple(sample.x.shape), int(sample.condition.max()))  # type: ignore[union-attr]
                key = (id(metric), self.drawn(evaluation), shape)
                if key not in checked:
                    checked[key] = list(self._metric(evaluations, metric, sample, self.drawn(evaluation)))
                found += checked[key]
            for sentence in found:
                names.setdefault(sentence, []).append(repr(name))
        for sentence, those in names.items():
            unique = list(dict.fromkeys(those))
            yield f"evaluation{'s' * (len(unique) > 1)} {', '.join(unique)}: {sentence}"

    def unresolved(self, evaluations: GuidedEvaluations) -> Iterator[str]:
        """Yield only why guidances cannot be resolved, without a look at networks, samples and metrics."""
        for name, evaluation in evaluations.evaluations.items():

            def resolve(evaluation: Evaluation = evaluation, name: str = name) -> None:
                denoiser = evaluation.resolve(self.models)
                self.notes[name] = list(dict.fromkeys(self._without_effect(evaluation, denoiser)))

            if error := attempt(resolve):
                yield f"evaluation {name!r}: {error}"

    def _guidance(
        self, name: str, evaluation: Evaluation, guiders: Callable[[Denoiser], Iterator[str]]
    ) -> tuple[Batch | None, list[str]]:
        """Return a sample and what is missing to draw it."""
        guidance = evaluation.guidance
        found = [*guiders(guidance), *needs_of(guidance, evaluation.start)]
        for part in guidance.modules():
            if isinstance(part, Snapshot):
                found += [error] if (error := attempt(lambda part=part: part.resolve(self.models))) else []  # type: ignore[misc]
        sample: Batch | None = None

        def draw() -> None:
            nonlocal sample
            denoiser = evaluation.resolve(self.models).eval().to(self.device)  # waits, before the first step
            if evaluation.compile == "graphs":
                check_graphs(denoiser)
            self.notes[name] = list(dict.fromkeys(self._without_effect(evaluation, denoiser)))
            x = rehearse(evaluation, denoiser, self.data, self.device, num_classes=self.num_classes)
            # waits before the first step alone
            # waits, as below
            sample = Batch(x, torch.tensor([self._largest_label(evaluation)], device=self.device))

        if not found and (error := attempt(draw)):
            found = [error]
        return sample, found

    def _metric(
        self, evaluations: GuidedEvaluations, metric: SampleMetric, sample: Batch | None, count: int
    ) -> Iterator[str]:
        """Yield what one metric misses; networks of equal configuration are loaded once."""
        attempt(lambda: evaluations.share_extractors(metric))  # missing weights are reported below
        # waits, as above
        sample = None if sample is None else Batch(*(part.to(metric.device) for part in sample if part is not None))
        yield from metric.missing(sample, count, self.data.reference(metric.device))

    def _largest_label(self, evaluation: Evaluation) -> int:
        """Return the largest label that `evaluation` draws, -1 if it draws none."""
        classes = self.num_classes if evaluation.num_classes is None else evaluation.num_classes
        return evaluation.labels if isinstance(evaluation.labels, int) and classes else classes - 1

    def _without_effect(self, evaluation: Evaluation, denoiser: Denoiser) -> Iterator[str]:
        """Yield sentences about parts of a guidance that change no sample, or that the model is not trained for."""
        steps = steps_of(evaluation, denoiser)
        for reference in evaluation.guidance.modules():
            if isinstance(reference, Reference):
                yield from reference.without_effect(steps)
        for part in denoiser.modules():
            if isinstance(part, Guidance):
                yield from part.without_effect(steps)
        dropped = [part.positive for part in evaluation.guidance.modules() if isinstance(part, Unconditional)]
        if dropped and self._largest_label(evaluation) < 0:
            yield "classifier-free guidance drops the condition of samples, but these samples have none"
        if not self.dropout and any(_of_this_run(model) for part in dropped for model in part.modules()):
            yield (
                "it requires predictions without a condition, but the model is trained with label_dropout 0; set it "
                "(usual: 0.1), or name an unconditional network"
            )


def _of_this_run(model: torch.nn.Module) -> bool:
    """Return whether `model` refers to the model in training or to an earlier snapshot of it."""
    return isinstance(model, Main) or (isinstance(model, Snapshot) and model.run is None)
