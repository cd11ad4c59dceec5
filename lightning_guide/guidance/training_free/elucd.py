"""Guidance by a calibrated off-the-shelf classifier (EluCD), Ma et al. 2024, https://arxiv.org/abs/2310.11311."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.schedules import PowerLaw, Schedule, StepContext
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.objectives.class_label import ClassLabel

__all__ = ["EluCD", "Sine"]


class Sine(Schedule):
    """c (1 + gamma sin(pi p)) with p = i / N the progress of the trajectory, times another `schedule` c.

    The paper calls its schedule a sine with gamma = 0.3. The formula here is inferred, not checked against the paper's.
    """

    def __init__(self, gamma: float = 0.3, *, schedule: Schedule | None = None) -> None:
        """`gamma`: increase of the guidance halfway; `schedule` defaults to the factor 1."""
        self.gamma, self.schedule = gamma, schedule or PowerLaw()

    def at(self, context: StepContext) -> float:
        """Return the factor of this step."""
        progress = context.trajectory.step / context.trajectory.steps
        return (1 + self.gamma * math.sin(math.pi * progress)) * self.schedule.at(context)


class EluCD(EnergyGuidance):
    """EluCD: D - weight sigma^2 (1 + gamma sin(pi p)) grad_x loss(D), loss = -joint f_y + log sum_c exp(marginal f_c).

    `UniversalGuidance` with a calibrated classifier of clean images. For smooth gradients use `TimmNetwork` with
    `softplus` (3 for DDPM, 5 for EDM). The published marginal is 0.5 for DDPM and 0 for EDM; their base models are
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
        **options: Any,
    ) -> None:
        """Guide by the logits of `classifier`.

        Args:
            classifier: as in `ClassLabel`.
            weight: strength of the guidance.
            label: as in `ClassLabel`.
            joint: as in `ClassLabel`.
            marginal: as in `ClassLabel`.
            gamma: as in `Sine`.
            **options: `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        energy = ClassLabel(classifier, label, joint=joint, marginal=marginal)
        rule = ConstantStep(weight, schedule=Sine(gamma, schedule=PowerLaw(2)))
        super().__init__(energy, [ThroughDenoiser(rule)], estimator=None, noise="implied", **options)
