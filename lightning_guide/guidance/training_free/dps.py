"""Diffusion posterior sampling (DPS), Chung et al. 2023, https://arxiv.org/abs/2209.14687, algorithm 1.

Also with Adam (AdamDPS), Belardi et al. 2026.
"""

from __future__ import annotations

from typing import Any

from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.schedules import PowerLaw
from lightning_guide.guidance.training_free.step_rules import AdamStep, ConstantStep
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.objectives.energy import Energy

__all__ = ["AdamDPS", "DPS"]


class DPS(EnergyGuidance):
    """Diffusion posterior sampling (DPS): x' -= rate sqrt(1 + sigma^2) sqrt(1 + sigma'^2) grad_x loss(D).

    In the paper x_{t-1} -= zeta grad_{x_t} loss. The published rates (0.3 for super-resolution and deblurring, 0.5 for
    inpainting, 1 for phase retrieval) belong to the unsquared norm |y - A(D)| and 1000 steps of DDPM (`DDIM` with
    eta = 1).

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions import gaussian
        >>> from lightning_guide.objectives import SquaredDistance
        >>> model, x, sigma = gaussian([0.0], 1.0), torch.tensor([[2.0]]), torch.tensor(1.0)
        >>> model(x, sigma)  # D = x / (1 + sigma^2)
        tensor([[1.]])
        >>> DPS(SquaredDistance([3.0]), rate=0.5, positive=model)(x, sigma)  # D + 0.5 sqrt(2) (3 - D) dD/dx
        tensor([[1.7071]])
    """

    def __init__(self, energy: Energy, rate: float, **options: Any) -> None:
        """Guide by `energy`; `rate` is the paper's zeta.

        Args:
            energy: the loss.
            rate: the paper's zeta.
            **options: `estimator`, `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        rule = ConstantStep(rate, schedule=PowerLaw(scale=1, scale_next=1))
        super().__init__(energy, [ThroughDenoiser(rule)], noise="kept", **options)


class AdamDPS(EnergyGuidance):
    """DPS with Adam (AdamDPS): x' -= rate sqrt(1 + sigma^2) m / (sqrt(v) + 1e-8).

    m and v are the moments of g_VP = sqrt(1 + sigma^2) grad_x loss(D). In the paper
    x_{t-1} += rho m / (sqrt(v) + 1e-8) / sqrt(alpha), with moments bias-corrected over the sampling steps.
    """

    def __init__(
        self, energy: Energy, rate: float = 0.034, *, beta1: float = 0.0, beta2: float = 0.817, **options: Any
    ) -> None:
        """Guide by `energy`. The defaults are those tuned for labels on CIFAR-10.

        Args:
            energy: the loss.
            rate: rho; 0.001 on ImageNet.
            beta1: decay of m; 0.254 on ImageNet.
            beta2: decay of v; 0.726 on ImageNet.
            **options: `estimator`, `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        scale = PowerLaw(scale=1)
        rule = AdamStep(rate, beta1=beta1, beta2=beta2, schedule=scale, gradient_schedule=scale)
        super().__init__(energy, [ThroughDenoiser(rule)], noise="kept", **options)
