"""Universal guidance (UG), Bansal et al. 2023, https://arxiv.org/abs/2302.07121, algorithm 1 and equations 6 to 9."""

from __future__ import annotations

from typing import Any

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.schedules import PowerLaw
from lightning_guide.guidance.training_free.step_rules import AdamStep, ConstantStep, StepRule
from lightning_guide.guidance.training_free.updates import AtClean, ThroughDenoiser
from lightning_guide.objectives.energy import Energy

__all__ = ["UniversalGuidance"]


class UniversalGuidance(EnergyGuidance):
    """Universal guidance (UG): forward D_f = D - weight sigma^2 grad_x loss(D), then backward steps at D_f.

    The backward part is `backward_steps` steps of the rule `backward`. Both parts change the noise as well,
    noise = (x - D_new) / sigma. In the paper's form eps <- eps + weight sqrt(1 - abar) g_VP, then
    eps <- eps - sqrt(abar / (1 - abar)) delta_0. Its recurrence is `TimeTravel` around the sampler. The published clamp
    to [-1, 1] and per-sample early stop are left out.
    """

    def __init__(
        self,
        energy: Energy,
        weight: float,
        *,
        backward_steps: int = 0,
        backward: StepRule | None = None,
        positive: Denoiser | None = None,
        **options: Any,
    ) -> None:
        """Guide `positive` by `energy`.

        Args:
            energy: the loss.
            weight: w of the forward part, s(t) = w sqrt(1 - abar); 0 turns it off.
            backward_steps: steps of the backward part.
            backward: their rule; default Adam at rate 0.01.
            positive: the denoiser to guide; default: the model under evaluation.
            **options: `window` and `guide_batch` of `EnergyGuidance`.
        """
        if weight:
            forward = ThroughDenoiser(ConstantStep(weight, schedule=PowerLaw(2)))
            positive = EnergyGuidance(energy, [forward], noise="implied", positive=positive, **options)
        update = AtClean(backward or AdamStep(0.01), backward_steps)
        super().__init__(energy, [update], estimator=None, noise="implied", positive=positive, **options)
