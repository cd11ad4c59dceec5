"""A named evaluation: which samples to draw, under which guidance, with which sampler, scored by which metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.guidance import Main
from lightning_guide.samplers import Heun, Sampler
from lightning_guide.seeds import SampleSeeds, mix

__all__ = ["Evaluation", "SampleIndices", "under_guidances"]


class SampleIndices(Dataset[SampleBatch]):
    """Samples first_index ... first_index + num_samples - 1 and their labels; label i depends on (seed, i) alone."""

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        labels: Literal["balanced", "random"] | int,
        seed: int,
        first_index: int = 0,
    ) -> None:
        """`labels`: "balanced" (i modulo the classes), "random", or one class for all; -1 without classes.

        Raises:
            ValueError: if there is nothing to draw or the class does not exist.
        """
        if num_samples < 1:
            raise ValueError(f"an evaluation needs num_samples >= 1, got {num_samples}")
        if isinstance(labels, int) and not -1 <= labels < max(num_classes, 0):
            raise ValueError(f"label {labels} is out of range: there are {num_classes} classes or prompts (-1 is none)")
        self.num_samples, self.num_classes, self.labels = num_samples, num_classes, labels
        self.seed, self.first_index = seed, first_index

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, item: int) -> SampleBatch:
        index = self.first_index + item
        if self.num_classes == 0:
            label = -1
        elif isinstance(self.labels, int):
            label = self.labels
        elif self.labels == "balanced":
            label = index % self.num_classes
        else:
            label = mix(self.seed, index, "label") % self.num_classes
        return SampleBatch(torch.tensor(index), torch.tensor(label))


@dataclass(frozen=True)
class Evaluation:
    """One sampling loop.

    Attributes:
        guidance: a denoiser made of references; default: the model under evaluation, unguided.
        sampler: default: Heun with 32 steps.
        metrics: name -> metric; default: those of the module.
        num_samples: how many samples, over all processes together.
        batch_size: samples in one network call, for each process. Results do not depend on it.
        seed: sample i depends on (seed, i) alone; equal seeds pair the samples of two evaluations.
        first_index: index of the first sample, so that fresh samples need no new seed.
        repetitions: the evaluation is done so often, each time with the next num_samples samples; reported are mean,
            minimum and maximum. Published FIDs are often the minimum of 3.
        labels: "balanced", "random", or one class index.
        num_classes: number of classes that labels are drawn from; default: those of the model under evaluation. A model
            without labels under a guidance that has a classifier needs it, and so does its unguided baseline if
            metrics are to know the labels.
        start: a distribution with `sample_each(generators) -> (x, ...)`; trajectories begin at its noised draws.
            Default: pure noise, the same where sigma_max is far above the size of the data.
        compile: compile the networks with `torch.compile`; minutes at the start, and a C++ or GPU compiler.
    """

    guidance: Denoiser = None  # type: ignore[assignment]  # set below: a saved config shows null, not an object
    sampler: Sampler = None  # type: ignore[assignment]
    metrics: dict[str, SampleMetric] | None = None
    num_samples: int = 1000
    batch_size: int = 256
    seed: int = 0
    first_index: int = 0
    repetitions: int = 1
    labels: Literal["balanced", "random"] | int = "balanced"
    num_classes: int | None = None
    start: nn.Module | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        """Fills in the default guidance and sampler.

        Raises:
            ValueError: if num_classes is negative, or repetitions below 1.
        """
        if self.repetitions < 1:
            raise ValueError(f"an evaluation needs repetitions >= 1, got {self.repetitions}")
        if self.num_classes is not None and self.num_classes < 0:
            raise ValueError(f"an evaluation needs num_classes >= 0, got {self.num_classes}")
        object.__setattr__(self, "guidance", self.guidance if self.guidance is not None else Main())
        object.__setattr__(self, "sampler", self.sampler if self.sampler is not None else Heun())

    def dataset(self, num_classes: int) -> SampleIndices:
        """The samples to draw from a model of `num_classes` classes, unless the evaluation says how many there are."""
        classes = num_classes if self.num_classes is None else self.num_classes
        count = self.num_samples * self.repetitions
        return SampleIndices(count, classes, labels=self.labels, seed=self.seed, first_index=self.first_index)

    def resolve(self, models: Models) -> Denoiser:
        """The guidance with models of `models` for its references.

        Raises:
            SnapshotMissing: if a guider does not exist (yet).
            ValueError: if a guider does not fit, or the labels of the samples are not those that the guidance knows.
        """
        denoiser = self.guidance.resolve(models)
        drawn = models.main.num_classes if self.num_classes is None else self.num_classes
        known = denoiser.num_classes
        if known and not drawn and self.labels != -1:
            raise ValueError(
                f"its guidance knows {known} classes, but the model under evaluation none to draw labels from; "
                f"set num_classes: {known}, or labels: -1 for samples without a label"
            )
        if known and drawn > known:
            raise ValueError(f"its labels are drawn from {drawn} classes, but its guidance knows {known}")
        return denoiser

    def initial(self, noise: Tensor, seeds: SampleSeeds) -> Tensor:
        """States at the first noise level, `(B, *data_shape)`: `noise`, added to draws of `start` if there is one."""
        if self.start is None:
            return noise
        draws = self.start.sample_each(seeds.generators("start"))[0]  # type: ignore[operator]
        return draws.to(noise).add_(noise)


def under_guidances(evaluations: Mapping[str, Evaluation], guidances: Mapping[str, Denoiser]) -> dict[str, Evaluation]:
    """The first of `evaluations` and, by name, that same one under each of `guidances`; all of them without guidances.

    Raises:
        ValueError: if a guidance has the name of the first evaluation.
    """
    if not guidances:
        return dict(evaluations)
    first, evaluation = next(iter(evaluations.items()), ("unguided", Evaluation()))
    if first in guidances:
        raise ValueError(f"a guidance is called {first!r}, as the evaluation it is compared with")
    return {first: evaluation} | {name: replace(evaluation, guidance=each) for name, each in guidances.items()}
