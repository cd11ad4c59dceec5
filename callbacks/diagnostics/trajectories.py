"""Recorded guided trajectories: base of the diagnostics of guidance along sampling."""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.base import ResolvedGuidances
from callbacks.output import output_folder, render, save_image, unwritable_output
from lightning_guide.data import data_of
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.evaluation.sampling_loop import build_condition
from lightning_guide.guidance import ClassifierGuidance, EnergyGuidance, Guidance
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.files import atomic
from lightning_guide.utils.resume import plain_data

__all__ = ["GuidedTrajectories", "RecordedTrajectory", "nan_to_none", "none_to_nan", "save_figure", "record_trajectory"]


@dataclass(frozen=True)
class RecordedTrajectory:
    """A batch of guided trajectories of T steps, on the CPU.

    Attributes:
        sigmas: noise level at the start of each step, (T,).
        states: x at the start of each step, (T, B, *).
        plain: clean estimate without the guidance, at the same x, (T, B, *).
        guided: clean estimate with the guidance, (T, B, *).
        losses: loss estimated by the guidance, (T, B); NaN where it does not act.
        condition: condition of the samples, labels (B,) or embeddings (B, L, C), or None.
    """

    sigmas: Tensor
    states: Tensor
    plain: Tensor
    guided: Tensor
    losses: Tensor
    condition: Tensor | None

    @property
    def pushes(self) -> Tensor:
        """Displacements guided - plain, (T, B, *)."""
        return self.guided - self.plain


class _Recorder(Guidance):
    """Wrapper that records x, the clean estimate and the reported loss of the first call in each step."""

    def __init__(self, positive: Denoiser) -> None:
        super().__init__()
        self.positive = positive
        self.records: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def start(self, trajectory: Trajectory) -> Predict:
        predict = self.positive.start(trajectory)

        def recording_predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            trajectory.diagnostics.pop("loss", None)  # of a previous step
            prediction = predict(x, sigma, condition)
            if trajectory.step not in self.records:
                loss = trajectory.diagnostics.get("loss", torch.full((len(x),), math.nan))
                self.records[trajectory.step] = (x.detach().cpu(), prediction.clean.detach().cpu(), loss.float().cpu())
            return prediction

        return recording_predict

    def stacked(self) -> list[Tensor]:
        """Return states, estimates and losses, (T, B, *) each."""
        return [torch.stack(column) for column in zip(*self.records.values(), strict=True)]


def record_trajectory(
    guidance: EnergyGuidance | ClassifierGuidance,
    sampler: Sampler,
    *,
    seeds: SampleSeeds,
    condition: Tensor | None = None,
    device: torch.device | str = "cpu",
    x: Tensor | None = None,
) -> RecordedTrajectory:
    """Sample again and record the estimates of `guidance` and of its positive, without additional network calls.

    `x` (B, *) is the start; default: noise of the first level. Of a repeated step the first pass is recorded.
    """
    plain, recorded = _Recorder(guidance.positive), copy.copy(guidance)
    recorded._modules = dict(guidance._modules) | {"positive": plain}
    guided = _Recorder(recorded)
    x = sampler.initial(guidance, seeds, device) if x is None else x
    sigmas = [trajectory.sigma for trajectory in sampler.steps(guided, x, seeds=seeds, condition=condition)]
    states, estimates, losses = guided.stacked()
    return RecordedTrajectory(
        torch.tensor(sigmas, dtype=torch.float64),
        states,
        plain.stacked()[1],
        estimates,
        losses,
        None if condition is None else condition.cpu(),
    )


class GuidedTrajectories(ResolvedGuidances, ABC):
    """Base of diagnostics that sample 0 ... `count` - 1 of each evaluation again and draw the recorded trajectories.

    Runs after every validation and test, on process 0. Only energy and classifier guidances have a loss; evaluations
    with other guidances are left out.
    """

    def __init__(self, count: int, folder: str | None) -> None:
        """Configure `count` samples of each evaluation; `folder` None is `report` in the run folder.

        Raises:
            ValueError: if `count` is below 1.
        """
        super().__init__()
        if count < 1:
            raise ValueError(f"{type(self).__name__} needs count >= 1 samples, got {count}")
        self.count, self.folder = count, folder

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the files cannot be written."""
        yield from unwritable_output(trainer, self)

    @abstractmethod
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, RecordedTrajectory]) -> None:
        """Draw the trajectories: evaluation -> walk. Called on process 0; `self.resolved` holds the guidances."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Record and draw the trajectories."""
        self._finish(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Record and draw the trajectories."""
        self._finish(trainer, pl_module)

    def _finish(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        walks = {}
        with module.evaluations.contain(type(self).__name__):
            for name, guidance in self.resolved.items():
                if isinstance(guidance, EnergyGuidance | ClassifierGuidance):
                    walks[name] = self._walk(guidance, name, trainer, module)
            if walks:
                self.draw(trainer, module, walks)
        self.resolved = {}

    def _walk(
        self, guidance: EnergyGuidance | ClassifierGuidance, name: str, trainer: pl.Trainer, module: DiffusionModule
    ) -> RecordedTrajectory:
        evaluation = module.evaluations.evaluations[name]
        samples = dict(zip(module.evaluations.names, module.sample_sets("validate"), strict=True))[name][0]
        drawn = [samples[i] for i in range(min(self.count, evaluation.num_samples))]
        seeds = evaluation.seeds([int(each.index) for each in drawn])
        numbers = torch.stack([each.condition for each in drawn]).to(module.device)
        condition = build_condition(guidance, numbers, data_of(trainer))
        x = evaluation.initial(evaluation.sampler.initial(guidance, seeds, module.device), seeds)
        return record_trajectory(
            guidance, evaluation.sampler, seeds=seeds, condition=condition, device=module.device, x=x
        )


def save_figure(trainer: pl.Trainer, folder: str | None, name: str, figure: Figure, numbers: Mapping[str, Any]) -> None:
    """Write `<folder>/<name>.png` and `.json` (default: `report` in the run folder) and log `report/<name>`.

    Numbers that are not finite are null in the file.
    """
    place = output_folder(trainer, folder)
    save_image(trainer, render(figure), place / f"{name}.png", tag=f"report/{name}")
    with atomic(place / f"{name}.json", durable=False) as temporary:
        temporary.write_text(json.dumps(plain_data(numbers), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def nan_to_none(values: Tensor) -> list[float | None]:
    """Return `values` (T,) as JSON stores them: NaN as None."""
    return [None if value != value else value for value in values.tolist()]


def none_to_nan(values: Sequence[float | None]) -> list[float]:
    """Return `values` as matplotlib draws them: None as NaN."""
    return [math.nan if value is None else value for value in values]
