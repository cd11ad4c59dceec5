"""Evaluations: settings of the samples to draw, their guidance, sampler and metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_guide.compiled import Compilation
from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.device_seeds import Noise, sample_seeds
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.guidance import Clipped, Guidance, Main
from lightning_guide.samplers import Heun, Sampler
from lightning_guide.seeds import SampleSeeds, check_seed, mix
from lightning_guide.utils.devices import to_device

__all__ = ["Evaluation", "SampleIndices", "check_names", "under_guidances", "under_only_guidance"]


class SampleIndices(Dataset[SampleBatch]):
    """Sample indices first_index ... first_index + num_samples - 1 with labels; label i depends only on (seed, i)."""

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
            ValueError: if `num_samples` is below 1 or the class does not exist.
        """
        if num_samples < 1:
            raise ValueError(f"an evaluation needs num_samples >= 1, got {num_samples}")
        if isinstance(labels, int) and not -1 <= labels < max(num_classes, 0):
            raise ValueError(
                f"label {labels} is out of range: there are {num_classes} classes or prompts (-1: no label)"
            )
        self.num_samples, self.num_classes, self.labels = num_samples, num_classes, labels
        self.seed, self.first_index = check_seed(seed), first_index

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
    """Settings of one evaluation, which is one sampling loop.

    Attributes:
        guidance: a denoiser with references to models; default: the model under evaluation, unguided.
        sampler: default: Heun with 32 steps.
        metrics: name -> metric; default: those of the module.
        num_samples: number of samples, over all processes together.
        batch_size: samples per network call and process. Results do not depend on it.
        seed: sample i depends only on (seed, i); equal seeds pair the samples of two evaluations.
        first_index: index of the first sample, so that fresh samples need no new seed.
        repetitions: number of evaluations, each of the next num_samples samples; the report has mean, minimum and
            maximum. Published FIDs are often the minimum of 3.
        labels: "balanced", "random", or one class index.
        num_classes: number of classes that labels are drawn from; default: that of the model under evaluation. Needed
            for an unconditional model under classifier guidance, and for its unguided baseline if metrics use labels.
        start: a distribution with `sample_each(generators) -> (x, ...)`; trajectories start from its noised
            draws. Default: pure noise, equivalent if sigma_max is far above the scale of the data.
        compile: compile the networks with `torch.compile`; takes minutes at the start and needs a C++ or GPU compiler.
            "graphs": also replay them as CUDA graphs, which saves the launches of kernels.
        noise: where random numbers are computed: on the "host" by torch's generators, one sample after another, or all
            at once on the "device" by a counter (`DeviceSeeds`), which gives other samples.
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
    compile: Compilation = False
    noise: Noise = "host"

    @property
    def fingerprint(self) -> str:
        """Short hash of what decides, with the model, which samples are drawn: guidance, sampler, seed, numbers."""
        numbers = [self.num_samples, self.seed, self.first_index, self.repetitions, self.labels]
        drawn = [self.guidance.recipe, self.sampler.recipe, *numbers, *([self.noise] if self.noise != "host" else [])]
        return hashlib.sha256(json.dumps(drawn, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def __post_init__(self) -> None:
        """Fill in the default guidance and sampler.

        Raises:
            ValueError: if num_classes is negative, repetitions are below 1, or `compile` or `noise` is no such setting.
        """
        if self.compile not in (True, False, "graphs"):
            raise ValueError(f"an evaluation needs compile: false, true or graphs, got {self.compile!r}")
        self.seeds([])
        if self.repetitions < 1:
            raise ValueError(f"an evaluation needs repetitions >= 1, got {self.repetitions}")
        if self.num_classes is not None and self.num_classes < 0:
            raise ValueError(f"an evaluation needs num_classes >= 0, got {self.num_classes}")
        object.__setattr__(self, "guidance", self.guidance if self.guidance is not None else Main())
        object.__setattr__(self, "sampler", self.sampler if self.sampler is not None else Heun())

    @property
    def guided(self) -> bool:
        """Whether samples are guided: false for a model alone, clipped or not."""
        guidance = self.guidance
        while isinstance(guidance, Clipped):
            guidance = guidance.positive
        return isinstance(guidance, Guidance)

    def dataset(self, num_classes: int) -> SampleIndices:
        """Return the samples to draw from a model of `num_classes` classes, which the evaluation may override."""
        classes = num_classes if self.num_classes is None else self.num_classes
        count = self.num_samples * self.repetitions
        return SampleIndices(count, classes, labels=self.labels, seed=self.seed, first_index=self.first_index)

    def seeds(self, indices: Sequence[int] | Tensor) -> SampleSeeds:
        """Return the random streams of the samples `indices` (B,)."""
        return sample_seeds(self.noise, self.seed, indices)

    def resolve(self, models: Models) -> Denoiser:
        """Return the guidance with its references replaced by models from `models`.

        Raises:
            SnapshotMissing: if a guider does not exist (yet).
            ValueError: if a guider does not fit the model, or the labels do not fit the guidance.
        """
        denoiser = self.guidance.resolve(models)
        drawn = models.main.num_classes if self.num_classes is None else self.num_classes
        known = denoiser.num_classes
        if known and not drawn and self.labels != -1:
            raise ValueError(
                f"its guidance has {known} classes, but the model under evaluation has none to draw labels from; "
                f"set num_classes: {known}, or labels: -1 for samples without a label"
            )
        if known and drawn > known:
            raise ValueError(f"its labels are drawn from {drawn} classes, but its guidance has {known}")
        return denoiser

    def initial(self, noise: Tensor, seeds: SampleSeeds) -> Tensor:
        """Return states at the first noise level `(B, *data_shape)`: `noise`, plus draws of `start` if it is set."""
        if self.start is None:
            return noise
        draws = self.start.sample_each(seeds.generators("start"))[0]  # type: ignore[operator]
        return to_device(draws.to(noise.dtype), noise.device).add_(noise)


def under_only_guidance(prediction: Evaluation, guidances: Mapping[str, Denoiser]) -> Evaluation:
    """Return `prediction` under the only one of `guidances`; unchanged if it has a guidance, or there are several."""
    if len(guidances) != 1 or not isinstance(prediction.guidance, Main):
        return prediction
    return replace(prediction, guidance=next(iter(guidances.values())))


def check_names(what: str, names: Iterable[object]) -> None:
    """Check that the keys of a dict are names.

    Raises:
        ValueError: if one is no text or empty: with `what` they name, and the key.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{what} have names such as 'guided', but one is called {name!r}; expected text")


def under_guidances(evaluations: Mapping[str, Evaluation], guidances: Mapping[str, Denoiser]) -> dict[str, Evaluation]:
    """Return the first of `evaluations` and, by name, a copy under each of `guidances`; without guidances return all.

    Raises:
        ValueError: if a guidance has the name of the first evaluation.
    """
    check_names("guidances", guidances)
    if not guidances:
        return dict(evaluations)
    first, evaluation = next(iter(evaluations.items()), ("unguided", Evaluation()))
    if first in guidances:
        raise ValueError(f"a guidance is called {first!r}, as the evaluation it is compared with")
    return {first: evaluation} | {name: replace(evaluation, guidance=each) for name, each in guidances.items()}
