"""A calibrated off-the-shelf classifier as a guide. Ma et al. 2024 (EluCD), https://arxiv.org/abs/2310.11311."""

from __future__ import annotations

import math

from torch import nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.schedules import PowerLaw, Schedule, SigmaWindow, StepContext
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.objectives.class_label import ClassLabel

__all__ = ["EluCD", "Sine"]


class Sine(Schedule):
    """c (1 + gamma sin(pi p)) with p = i / N the progress of the trajectory, times another `schedule` c.

    The paper calls its schedule a sine with gamma = .3; this is our reading of it, not checked against its formula.
    """

    def __init__(self, gamma: float = 0.3, *, schedule: Schedule | None = None) -> None:
        """`gamma`: how much more guidance there is halfway; `schedule` defaults to the factor 1."""
        self.gamma, self.schedule = gamma, schedule or PowerLaw()

    def at(self, point: StepContext) -> float:
        """The factor of this step."""
        progress = point.trajectory.step / point.trajectory.steps
        return (1 + self.gamma * math.sin(math.pi * progress)) * self.schedule.at(point)


class EluCD(EnergyGuidance):
    """D - weight sigma^2 (1 + gamma sin(pi p)) grad_x loss(D), loss = -joint f_y + log sum_c exp(marginal f_c).

    `UniversalGuidance` with a calibrated classifier of clean pictures: use `TimmNetwork` with `softplus` (3 for DDPM,
    5 for EDM) for smooth gradients. The published marginal is .5 for DDPM and 0 for EDM; their base models are
    conditional.
    """

    def __init__(
        self,
        classifier: nn.Module,
        weight: float,
        *,
        label: int | None = None,
        joint: float = 1.0,
        marginal: float = 0.0,
        gamma: float = 0.3,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`classifier`, `label`, `joint` and `marginal` as in `ClassLabel`; `gamma` as in `Sine`."""
        schedule = Sine(gamma, schedule=PowerLaw(2))
        super().__init__(
            ClassLabel(classifier, label, joint=joint, marginal=marginal),
            [ThroughDenoiser(ConstantStep(weight, schedule=schedule))],
            window=window,
            noise="implied",
            guide_batch=guide_batch,
            positive=positive,
        )
