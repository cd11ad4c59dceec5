"""Sampling loop of one evaluation: resolve the guidance, draw batches of samples, update metrics, report."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.distributed
from torch import Tensor, nn

from lightning_guide.conditioning import drop_condition
from lightning_guide.data import DataInterface, Prompts, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.measurement_fit import MeasurementFit
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.guidance.particles import ParticleSampler
from lightning_guide.inference import fuse_weights, is_diverged
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.distributed import all_reduce_sum

__all__ = ["DrawnSamples", "SampleStore", "SamplingLoop", "add_results", "build_condition", "prompts_of"]


Contain = Callable[[str], AbstractContextManager[None]]
"""What may fail -> a context that records an exception instead of raising it."""


class DrawnSamples(NamedTuple):
    """Output of a sampling step: sample `index` (B,), `condition` (B,) and `x` in stored form."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    condition: Tensor
    x: Tensor


class SampleStore(ABC):
    """Store of predicted samples, a callback, from which an interrupted prediction continues."""

    @abstractmethod
    def holds(self, index: Tensor) -> bool:
        """Return whether all samples of a batch, `index` (B,), are stored already, so that they need not be drawn."""


@dataclass
class SamplingLoop:
    """One pass of an evaluation with resolved guidance and prepared metrics.

    Compiled code is for one number of `rows`: the last, smaller batch is filled up with copies of its last sample.
    """

    name: str
    evaluation: Evaluation
    denoiser: Denoiser
    metrics: dict[str, SampleMetric]
    fit: MeasurementFit
    further: list[dict[str, SampleMetric]] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0
    calls: int = 0
    unguided: int = 0
    diverged: int = 0
    rows: int = 0

    @classmethod
    def start(cls, name: str, evaluation: Evaluation, models: Models, metrics: dict[str, SampleMetric]) -> SamplingLoop:
        """Resolve the references of `evaluation` in `models`; `metrics` are prepared and not shared with other loops.

        Each further repetition has copies of them.

        Raises:
            SnapshotMissing: if a guider does not exist (yet).
            ValueError: as `Evaluation.resolve`, or if the denoiser cannot be compiled.
        """
        for metric in metrics.values():
            metric.reset()
        further = [
            {key: cast(SampleMetric, metric.clone()) for key, metric in metrics.items()}
            for _ in range(evaluation.repetitions - 1)
        ]
        denoiser = fuse_weights(evaluation.resolve(models).eval(), compile=evaluation.compile)
        guides: list[nn.Module] = [denoiser]
        if isinstance(evaluation.sampler, ParticleSampler):
            guides.append(evaluation.sampler.energy)
        return cls(name, evaluation, denoiser, metrics, MeasurementFit(guides), further)

    def draw(self, batch: SampleBatch, data: DataInterface) -> DrawnSamples:
        """Draw the samples of `batch` and add them to the metrics."""
        begin = time.perf_counter()
        device = batch.index.device
        index, numbers = torch.stack([batch.index, batch.condition]).cpu()  # waits: seeds and prompts are on the host
        count = len(index)
        self.rows = max(self.rows, count) if self.evaluation.compile else count
        seeds = self.evaluation.seeds(_filled(index, self.rows).tolist())
        trajectory = self.evaluation.sampler.sample(
            self.denoiser,
            seeds=seeds,
            condition=build_condition(self.denoiser, _filled(numbers, self.rows), data),
            device=device,
            start=lambda noise: self.evaluation.initial(noise, seeds),
        )
        x = trajectory.x[:count]
        diagnostics = {name: values[:count] for name, values in trajectory.diagnostics.items()}
        self._count(index, is_diverged(x, self.denoiser.sigma_data), diagnostics)
        self.fit.add(trajectory, count)
        stored = data.decode(x)
        number = (index - self.evaluation.first_index) // self.evaluation.num_samples
        for repetition, metrics in enumerate([self.metrics, *self.further]):
            rows = (number == repetition).nonzero()[:, 0]
            chosen = slice(None) if len(rows) == len(index) else to_device(rows, device)
            # one object for all metrics, so that extractors reuse its features
            x, labels = stored[chosen], batch.condition[chosen]
            for metric in metrics.values() if len(rows) else ():
                metric.update(x, labels)
        self.calls += trajectory.evaluations * len(stored)
        self.samples += len(stored)
        self.seconds += time.perf_counter() - begin
        return DrawnSamples(batch.index, batch.condition, stored)

    def _count(self, index: Tensor, bad: Tensor, diagnostics: Mapping[str, Tensor]) -> None:
        """Count samples that are not finite (`bad`) or could not be guided; warn of the first ones."""
        unguided = torch.zeros_like(bad)
        if "taken" in diagnostics:  # counted by guidances that may be unable to guide a sample
            unguided = (diagnostics["taken"] == 0) & (diagnostics["skipped"] > 0)
        failed, without = torch.stack([bad, unguided]).cpu()  # waits once a batch, to warn while there is time
        diverged = int(failed.sum())
        if diverged and not self.diverged:  # later ones are counted
            advice = "; the weight of its guidance may be too large" if self.evaluation.guided else ""
            warnings.warn(
                f"evaluation {self.name!r}: {diverged} of {len(bad)} samples are not finite or out of bounds, "
                f"first index {int(index[failed][0])}{advice}",
                stacklevel=3,
            )
        self.diverged += diverged
        self.unguided += int(without.sum())

    def finish(self, device: torch.device, *, contain: Contain) -> dict[str, float]:
        """Return all metrics over all processes, with `nfe` (network calls per sample), `samples` and `seconds`.

        Each is computed within `contain("evaluation 'NAME'")`, so that all processes combine all of them.

        With repetitions KEY is the mean over them, and KEY_min and KEY_max are added. If it is not 0, `unguided` is
        the number of samples that a loss or a classifier could not guide at any step, and `diverged` the number of
        those that are not finite or out of bounds. Guided by a `Measurement`, samples have the means of
        `MeasurementFit`.
        """
        # waits at the end of an evaluation: the counts of all processes are reported by the host
        calls, samples, seconds = self.cost(device).tolist()
        report = {"nfe": calls / max(samples, 1), "samples": samples, "seconds": seconds}
        # waits twice, as above
        counts = all_reduce_sum(torch.tensor([self.unguided, self.diverged], dtype=torch.float64, device=device))
        named = zip(("unguided", "diverged"), counts.tolist(), strict=True)
        report |= {name: count for name, count in named if count} | self.fit.compute()
        for name in self.metrics:
            values = []
            for each in [self.metrics, *self.further]:
                with contain(f"evaluation {self.name!r}"):
                    values.append(each[name].compute())
            if len(values) > len(self.further):
                add_results(report, name, _over_repetitions(values) if self.further else values[0])
        return report

    def cost(self, device: torch.device) -> Tensor:
        """Return network calls, samples and seconds (3,) over all processes, float64."""
        return all_reduce_sum(  # waits at the end of an evaluation: the host counted
            torch.tensor([self.calls, self.samples, self.seconds], dtype=torch.float64, device=device)
        )


def _over_repetitions(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return mean, smallest and largest value of each key."""
    results: dict[str, Tensor] = {}
    for key in values[0]:
        column = torch.stack([each[key] for each in values])
        results |= {key: column.mean(), f"{key}_min": column.min(), f"{key}_max": column.max()}
    return results


def add_results(report: dict[str, float], metric: str, values: Mapping[str, Tensor]) -> None:
    """Add the results of a metric to `report`; a key that exists already is prefixed with the name of the metric."""
    for key, value in values.items():
        report[key if key not in report else f"{metric}_{key}"] = float(value)  # waits: it is reported


def prompts_of(data: DataInterface, denoiser: Denoiser) -> Prompts | None:
    """Return the prompts of `data`, for a `denoiser` that reads texts; None for others."""
    return data.prompts() if denoiser.token_channels else None


def _filled(numbers: Tensor, rows: int) -> Tensor:
    """Return `numbers` (B,) with the last one repeated to `rows`."""
    return torch.cat([numbers, numbers[-1:].expand(rows - len(numbers))])


def build_condition(denoiser: Denoiser, numbers: Tensor, data: DataInterface) -> Tensor | None:
    """Build the condition for `numbers` (B,): labels, or the embeddings of prompts if `denoiser` takes embeddings.

    -1: no condition. Returns None for an unconditional denoiser.

    Raises:
        ValueError: if a number has no prompt, or a part of `denoiser` takes labels and another one embeddings.
    """
    if not denoiser.token_channels:
        return numbers if denoiser.num_classes else None
    if denoiser.num_classes:
        raise ValueError(
            f"a {type(denoiser).__name__} takes labels ({denoiser.num_classes} classes), but its model takes "
            "embeddings; expected an energy with a label of its own (label: ...)"
        )
    prompts, rows = data.prompts(), numbers.cpu()  # waits, but not in a batch of an evaluation, which is on the host
    if bool((rows >= len(prompts)).any()):
        raise ValueError(f"prompt {int(rows.max())} does not exist; the data has prompts 0 to {len(prompts) - 1}")
    return to_device(drop_condition(prompts[rows.clamp(min=0)], rows < 0), numbers.device)
