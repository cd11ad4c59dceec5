"""TFG, a unified design space. Ye et al. 2024, https://arxiv.org/abs/2409.15761, algorithm 1."""

from __future__ import annotations

from typing import Literal

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.estimators import MonteCarlo
from lightning_guide.guidance.training_free.schedules import Balanced, PowerLaw, SigmaWindow
from lightning_guide.guidance.training_free.step_rules import ConstantStep
from lightning_guide.guidance.training_free.updates import AtClean, ThroughDenoiser, Update
from lightning_guide.objectives.energy import Energy

__all__ = ["TFG"]


Kind = Literal["increase", "decrease", "constant"]


class TFG(EnergyGuidance):
    """x' += rho_t (1 + sigma^2) grad_x log f(D) + Delta, Delta the sum of `iterations` steps mu_t grad log f.

    f is exp(-loss), smoothed with standard deviation gamma sigma / sqrt(1 + sigma^2) by `draws` samples that both
    parts share; rho_t = rho s(t) and mu_t = mu s(t) with `Balanced` schedules. Both parts start at D. In the paper's
    form x_{t-1} += Delta_t / sqrt(alpha) + sqrt(abar') Delta_0. Its N_recur is `TimeTravel`, its sampler `DDIM` with
    eta = 1. With rho = 0 no derivative of the denoiser is taken.

    Reductions: TFG(rho_t = zeta sqrt(alpha), 0, 0) is `DPS(zeta)`, TFG(0, mu, 0, iterations=1) is `MPGD(mu)`. With the
    factor 1 - sigma' / sigma that `UniversalGuidance` loses by changing the noise, its parts are those of TFG.
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
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`rho` and `mu` are means over the steps; `draws` do nothing at `gamma` = 0.

        Raises:
            ValueError: if both `rho` and `mu` are 0.
        """
        moves: list[Update] = []
        if rho:
            moves.append(
                ThroughDenoiser(ConstantStep(rho, schedule=Balanced(rho_schedule, schedule=PowerLaw(scale=2))))
            )
        if mu and iterations:
            moves.append(AtClean(ConstantStep(mu, schedule=Balanced(mu_schedule)), iterations))
        if not moves:
            raise ValueError(f"TFG needs rho or mu, got rho={rho}, mu={mu} and iterations={iterations}")
        super().__init__(
            energy,
            moves,
            estimator=MonteCarlo(draws, scale=gamma) if gamma else None,
            window=window,
            guide_batch=guide_batch,
            positive=positive,
        )
