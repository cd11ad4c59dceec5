"""Training-free guidance (TFG), Ye et al. 2024, https://arxiv.org/abs/2409.15761, algorithm 1.

A unified design space of training-free methods.
"""

from __future__ import annotations

from typing import Any, Literal

from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.estimators import MonteCarlo
from lightning_guide.guidance.training_free.schedules import Balanced, PowerLaw
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import AtClean, ThroughDenoiser, Update
from lightning_guide.objectives.energy import Energy

__all__ = ["TFG"]


Kind = Literal["increase", "decrease", "constant"]


class TFG(EnergyGuidance):
    """Training-free guidance (TFG): x' += rho_t (1 + sigma^2) grad_x log f(D) + Delta.

    Delta is the sum of `iterations` steps mu_t grad log f. f is exp(-loss), smoothed with standard deviation
    gamma sigma / sqrt(1 + sigma^2) by `draws` samples that both parts share; rho_t = rho s(t) and mu_t = mu s(t) with
    `Balanced` schedules. Both parts start at D. In the paper's form
    x_{t-1} += Delta_t / sqrt(alpha) + sqrt(abar') Delta_0. Its N_recur is `TimeTravel`, its sampler `DDIM` with
    eta = 1. With rho = 0 no derivative of the denoiser is taken.

    Reductions: TFG(rho_t = zeta sqrt(alpha), 0, 0) is `DPS(zeta)`, TFG(0, mu, 0, iterations=1) is `MPGD(mu)`. The parts
    of `UniversalGuidance` are those of TFG, apart from the factor 1 - sigma' / sigma that it loses by changing the
    noise.
    """

    def __init__(
        self,
        energy: Energy,
        rho: float,
        mu: float,
        gamma: float = 0.0,
        *,
        iterations: int = 4,
        draws: int = 1,
        rho_schedule: Kind = "increase",
        mu_schedule: Kind = "increase",
        **options: Any,
    ) -> None:
        """Guide by `energy`.

        Args:
            energy: the loss.
            rho: mean over the steps of rho_t.
            mu: mean over the steps of mu_t.
            gamma: scale of the smoothing.
            iterations: steps at the clean estimate.
            draws: of the smoothing; without effect at `gamma` = 0.
            rho_schedule: kind of `Balanced` schedule.
            mu_schedule: kind of `Balanced` schedule.
            **options: `window`, `guide_batch` and `positive` of `EnergyGuidance`.

        Raises:
            ValueError: if both `rho` and `mu` are 0.
        """
        updates: list[Update] = []
        if rho:
            schedule = Balanced(rho_schedule, schedule=PowerLaw(scale=2))
            updates.append(ThroughDenoiser(ConstantStep(rho, schedule=schedule)))
        if mu and iterations:
            updates.append(AtClean(ConstantStep(mu, schedule=Balanced(mu_schedule)), iterations))
        if not updates:
            raise ValueError(f"TFG needs rho or mu, got rho={rho}, mu={mu} and iterations={iterations}")
        estimator = MonteCarlo(draws, scale=gamma) if gamma else None
        super().__init__(energy, updates, estimator=estimator, noise="kept", **options)
