"""Loss-guided diffusion with Monte-Carlo samples (LGD-MC).

Song et al. 2023, https://proceedings.mlr.press/v202/song23k.html, equations 8 to 10.
"""

from __future__ import annotations

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.estimators import MonteCarlo
from lightning_guide.guidance.training_free.schedules import PowerLaw, SigmaWindow
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.objectives.energy import Energy

__all__ = ["LossGuidedDiffusion"]


class LossGuidedDiffusion(EnergyGuidance):
    """The score plus weight grad_x log mean_i exp(-loss(D + r n_i)): D + weight sigma^2 of it, noise implied.

    Weight 1 is the posterior as far as the estimate goes. All draws share one vector-Jacobian product.
    """

    def __init__(
        self,
        energy: Energy,
        weight: float = 1.0,
        *,
        draws: int = 10,
        data_std: float = 1.0,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`draws` and `data_std` as in `MonteCarlo`; the paper's r has `data_std` 1."""
        super().__init__(
            energy,
            [ThroughDenoiser(ConstantStep(weight, schedule=PowerLaw(2)))],
            estimator=MonteCarlo(draws, data_std=data_std),
            window=window,
            noise="implied",
            guide_batch=guide_batch,
            positive=positive,
        )
