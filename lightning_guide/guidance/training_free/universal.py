"""Universal guidance. Bansal et al. 2023, https://arxiv.org/abs/2302.07121, algorithm 1 and equations 6 to 9."""

from __future__ import annotations

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.schedules import PowerLaw, SigmaWindow
from lightning_guide.guidance.training_free.step_rules import AdamStep, ConstantStep, StepRule
from lightning_guide.guidance.training_free.updates import AtClean, ThroughDenoiser
from lightning_guide.objectives.energy import Energy

__all__ = ["UniversalGuidance"]


class UniversalGuidance(EnergyGuidance):
    """Forward D_f = D - weight sigma^2 grad_x loss(D), then backward: `backward_steps` of `backward` at D_f.

    Both go into the noise as well, noise = (x - D_new) / sigma. In the paper's form
    eps <- eps + weight sqrt(1 - abar) g_VP, then eps <- eps - sqrt(abar / (1 - abar)) delta_0. Its recurrence is
    `TimeTravel` around the sampler. The published clamp to [-1, 1] and per-sample early stop are left out.
    """

    def __init__(
        self,
        energy: Energy,
        weight: float,
        *,
        backward_steps: int = 0,
        backward: StepRule | None = None,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`weight` w of the forward part, s(t) = w sqrt(1 - abar), 0 is off; `backward`: default Adam at rate .01."""
        forward = EnergyGuidance(
            energy,
            [ThroughDenoiser(ConstantStep(weight, schedule=PowerLaw(2)))],
            window=window,
            noise="implied",
            guide_batch=guide_batch,
            positive=positive,
        )
        backwards = AtClean(backward or AdamStep(0.01), backward_steps)
        super().__init__(
            energy,
            [backwards],
            window=window,
            noise="implied",
            guide_batch=guide_batch,
            positive=forward if weight else positive,
        )
