"""Guided trajectories with everything on the way: the base of callbacks that say what a guidance does where."""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.base import ResolvedGuidances
from callbacks.output import log_image, output_folder, render, write_png
from lightning_guide.data import data_of
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.evaluation.sampling_loop import build_condition
from lightning_guide.guidance import ClassifierGuidance, EnergyGuidance, Guidance
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.files import atomic

__all__ = ["GuidedTrajectories", "Walk", "record", "record_walk"]


@dataclass(frozen=True)
class Walk:
    """A batch of guided trajectories of T steps, on the CPU.

    Attributes:
        sigmas: noise level at the start of each step, (T,).
        states: x there, (T, B, *).
        plain: clean estimate without the guidance, at the same x, (T, B, *).
        guided: clean estimate with it, (T, B, *).
        losses: what the guidance estimates its loss to be, (T, B); NaN where it does not act.
        condition: of the samples, labels (B,) or embeddings (B, L, C), or None.
    """

    sigmas: Tensor
    states: Tensor
    plain: Tensor
    guided: Tensor
    losses: Tensor
    condition: Tensor | None

    @property
    def pushes(self) -> Tensor:
        """The displacements guided - plain, (T, B, *)."""
        return self.guided - self.plain


class _Noted(Guidance):
    """A denoiser that remembers, for each step, x, what it said and what loss was told, the first time it was asked."""

    def __init__(self, positive: Denoiser) -> None:
        super().__init__()
        self.positive = positive
        self.said: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def start(self, trajectory: Trajectory) -> Predict:
        predict = self.positive.start(trajectory)

        def noting(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            trajectory.diagnostics.pop("loss", None)  # of a step before
            prediction = predict(x, sigma, condition)
            if trajectory.step not in self.said:
                loss = trajectory.diagnostics.get("loss", torch.full((len(x),), math.nan))
                self.said[trajectory.step] = (x.detach().cpu(), prediction.clean.detach().cpu(), loss.float().cpu())
            return prediction

        return noting

    def stacked(self) -> list[Tensor]:
        """States, estimates and losses, (T, B, *) each."""
        return [torch.stack(column) for column in zip(*self.said.values(), strict=True)]


def record_walk(
    guidance: EnergyGuidance | ClassifierGuidance,
    sampler: Sampler,
    *,
    seeds: SampleSeeds,
    condition: Tensor | None = None,
    device: torch.device | str = "cpu",
    x: Tensor | None = None,
) -> Walk:
    """Samples once more, and keeps what `guidance` and its positive say; no evaluation is added.

    `x` (B, *) is where to start; default: noise of the first level. Of a step that is repeated, its first time counts.
    """
    plain, watched = _Noted(guidance.positive), copy.copy(guidance)
    watched._modules = dict(guidance._modules) | {"positive": plain}
    guided = _Noted(watched)
    x = sampler.initial(guidance, seeds, device) if x is None else x
    sigmas = [trajectory.sigma for trajectory in sampler.steps(guided, x, seeds=seeds, condition=condition)]
    states, estimates, losses = guided.stacked()
    return Walk(
        torch.tensor(sigmas, dtype=torch.float64),
        states,
        plain.stacked()[1],
        estimates,
        losses,
        None if condition is None else condition.cpu(),
    )


class GuidedTrajectories(ResolvedGuidances, ABC):
    """Walks the samples 0 ... `count` - 1 of each evaluation under a loss or a classifier once more, and draws them.

    After every validation and test, on process 0. Guidances of other kinds have no loss and are left out.
    """

    def __init__(self, count: int, folder: str | None) -> None:
        """`count` samples of each evaluation; `folder` is `report` in the folder of the run if None.

        Raises:
            ValueError: if that is none.
        """
        super().__init__()
        if count < 1:
            raise ValueError(f"{type(self).__name__} needs count >= 1 samples, got {count}")
        self.count, self.folder = count, folder

    @abstractmethod
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, Walk]) -> None:
        """Called with evaluation -> its trajectories; `self.resolved` holds the guidances."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Walks and draws."""
        self._finish(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Walks and draws."""
        self._finish(trainer, pl_module)

    def _finish(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        walks = {}
        for name, guidance in self.resolved.items():
            if isinstance(guidance, EnergyGuidance | ClassifierGuidance):
                walks[name] = self._walk(guidance, name, trainer, module)
        if walks:
            self.draw(trainer, module, walks)
        self.resolved = {}

    def _walk(
        self, guidance: EnergyGuidance | ClassifierGuidance, name: str, trainer: pl.Trainer, module: DiffusionModule
    ) -> Walk:
        evaluation = module.evaluations.evaluations[name]
        samples = dict(zip(module.evaluations.names, module.sample_sets("validate"), strict=True))[name][0]
        drawn = [samples[i] for i in range(min(self.count, evaluation.num_samples))]
        seeds = SampleSeeds(evaluation.seed, [int(each.index) for each in drawn])
        numbers = torch.stack([each.condition for each in drawn]).to(module.device)
        condition = build_condition(guidance, numbers, data_of(trainer))
        x = evaluation.initial(evaluation.sampler.initial(guidance, seeds, module.device), seeds)
        return record_walk(guidance, evaluation.sampler, seeds=seeds, condition=condition, device=module.device, x=x)


def record(trainer: pl.Trainer, folder: str | None, name: str, figure: Figure, numbers: Mapping[str, Any]) -> None:
    """Writes `<folder>/<name>.png` and `.json` (default: `report` in the folder of the run), logs `report/<name>`."""
    place = output_folder(trainer, folder)
    picture = render(figure)
    write_png(place / f"{name}.png", picture)
    with atomic(place / f"{name}.json", durable=False) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    log_image(trainer, f"report/{name}", picture)
