"""Euler's method on the probability-flow ODE, which is DDIM with eta = 0.

First-order samplers that replace a part of the noise by fresh noise in each step.

Song et al. 2021 (DDIM), https://arxiv.org/abs/2010.02502, equations 12 and 16; Yu et al. 2023 (FreeDoM),
https://arxiv.org/abs/2303.09833, whose eta is another one.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.noise import Grid
from lightning_guide.samplers.base import Memory, PredictAt, Sampler

__all__ = ["Ancestral", "DDIM", "Euler", "ProportionalAncestral"]


class Euler(Sampler):
    """First order: x' = clean + sigma' noise. N evaluations (DDIM with eta = 0)."""

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """One step from `sigma` to `sigma_next`."""
        trajectory.x = predict(trajectory.x, sigma).step(trajectory.x, sigma, sigma_next)


class Ancestral(Sampler):
    """x' = clean + sqrt(sigma'^2 - s^2) noise + s n with fresh standard normal n. N evaluations.

    The noise level after the step is sigma' for any s in [0, sigma'].
    """

    def __init__(self, grid: Grid | int | None = None, *, eta: float) -> None:
        """`grid` as in `Sampler`; `eta` in [0, 1] says how much of the noise is fresh: 0 is `Euler`.

        Raises:
            ValueError: if `eta` is not in [0, 1].
        """
        super().__init__(grid)
        if not 0 <= eta <= 1:
            raise ValueError(f"{type(self).__name__} needs eta between 0 (Euler) and 1, got {eta}")
        self.eta = eta

    @abstractmethod
    def fresh(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """s (), the standard deviation of the fresh noise."""

    def step(
        self, trajectory: Trajectory, predict: PredictAt, sigma: Tensor, sigma_next: Tensor, memory: Memory
    ) -> None:
        """One step from `sigma` to `sigma_next`."""
        s = self.fresh(sigma, sigma_next)
        kept = (sigma_next**2 - s**2).clamp(min=0).sqrt()
        x = predict(trajectory.x, sigma).step(trajectory.x, sigma, kept)
        if self.eta > 0 and trajectory.sigma_next > 0:
            n = trajectory.seeds.normal("ancestral", x.shape[1:], x.device).to(x)
            x = x.addcmul_(n, s)
        trajectory.x = x


class DDIM(Ancestral):
    """s = eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2): eta = 1, the default, is the posterior of DDPM.

    In the variance-preserving form s = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar').
    """

    def __init__(self, grid: Grid | int | None = None, *, eta: float = 1.0) -> None:
        """As `Ancestral`."""
        super().__init__(grid, eta=eta)

    def fresh(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2)."""
        return self.eta * sigma_next / sigma * (sigma**2 - sigma_next**2).sqrt()


class ProportionalAncestral(Ancestral):
    """s = eta sigma': the same share eta^2 of the variance is fresh in each step, as in the code of FreeDoM."""

    def __init__(self, grid: Grid | int | None = None, *, eta: float = 0.5) -> None:
        """As `Ancestral`."""
        super().__init__(grid, eta=eta)

    def fresh(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """eta sigma'."""
        return self.eta * sigma_next
