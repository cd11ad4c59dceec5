"""Loss-guided diffusion (LGD-MC), Song et al. 2023, https://proceedings.mlr.press/v202/song23k.html, equations 8-10."""

from __future__ import annotations

from typing import Any

from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.estimators import MonteCarlo
from lightning_guide.guidance.training_free.schedules import PowerLaw
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.objectives.energy import Energy

__all__ = ["LossGuidedDiffusion"]


class LossGuidedDiffusion(EnergyGuidance):
    """Loss-guided diffusion with Monte Carlo draws (LGD-MC).

    The score plus weight grad_x log mean_i exp(-loss(D + r n_i)): D grows by weight sigma^2 times that gradient, the
    noise is implied. Weight 1 is the posterior up to the error of the estimate. All draws share one vector-Jacobian
    product.
    """

    def __init__(
        self, energy: Energy, weight: float = 1.0, *, draws: int = 10, data_std: float = 1.0, **options: Any
    ) -> None:
        """Guide by the smoothed likelihood exp(-`energy`).

        Args:
            energy: the loss.
            weight: factor of the gradient.
            draws: as in `MonteCarlo`.
            data_std: as in `MonteCarlo`; the paper's r has 1.
            **options: `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        rule = ConstantStep(weight, schedule=PowerLaw(2))
        estimator = MonteCarlo(draws, data_std=data_std)
        super().__init__(energy, [ThroughDenoiser(rule)], estimator=estimator, noise="implied", **options)
