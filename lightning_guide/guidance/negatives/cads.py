"""Condition-annealed sampling (CADS): noise on the condition of the positive, early in the trajectory.

Sadat et al. 2023, "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling",
https://arxiv.org/abs/2310.17347. The noise increases the diversity of samples; there is none late in the trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import token_mask
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.negatives.cfg import Unconditional
from lightning_guide.guidance.perturbation import ChangedEmbedding, ConditionPerturbation, Perturbed
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["AnnealedCondition", "ConditionAnnealedGuidance"]


class AnnealedCondition(ConditionPerturbation):
    """CADS noise on embeddings y (B, E) of labels, or (B, L, E) of tokens, drawn at each call:

        y^ = sqrt(gamma) y + s sqrt(1 - gamma) n,    y^_r = (y^ - mean y^) / std y^ * std y + mean y,
        psi y^_r + (1 - psi) y^,

    gamma = 1 for t <= tau_1, (tau_2 - t) / (tau_2 - tau_1) between, 0 for t >= tau_2, with t = 1 - step / steps. Mean
    and std are those of the E numbers of each label or token; zeros, which mean no label or token, stay. gamma = 1
    changes nothing.
    """

    def __init__(
        self,
        scale: float = 0.15,
        *,
        tau: tuple[float, float] = (0.5, 0.9),
        mixing: float = 1.0,
        layers: Sequence[str] | None = None,
    ) -> None:
        """`scale` s of the noise, `tau` = (tau_1, tau_2), `mixing` psi in [0, 1].

        The defaults are for DiT with labels; Stable Diffusion has s = 0.25, tau = (0.6, 0.9). `layers`: modules whose
        output (B, E) or (B, L, E) is the embedding.

        Raises:
            ValueError: unless s >= 0, 0 <= tau_1 < tau_2 and 0 <= psi <= 1.
        """
        super().__init__(layers=layers)
        low, high = tau
        if not (scale >= 0 and 0 <= low < high and 0 <= mixing <= 1 and math.isfinite(scale)):
            raise ValueError(
                "CADS needs a finite scale >= 0, 0 <= tau_1 < tau_2 and mixing between 0 and 1, "
                f"got {scale}, {list(tau)} and {mixing}"
            )
        self.scale, self.tau, self.mixing = scale, tau, mixing

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the embedding with noise."""
        if self.tau[0] >= 1 or (self.scale == 0 and self.mixing == 1):  # no noise at any time t <= 1
            return module

        def annealed(y: Tensor) -> Tensor:
            gamma = self.gamma(1 - trajectory.step / trajectory.steps)
            if gamma == 1:
                return y
            n = trajectory.seeds.normal("annealed condition", y.shape[1:], y.device).to(y.dtype)
            noisy = math.sqrt(gamma) * y + self.scale * math.sqrt(1 - gamma) * n
            deviation, mean = torch.std_mean(y, dim=-1, keepdim=True, correction=0)
            noisy_deviation, noisy_mean = torch.std_mean(noisy, dim=-1, keepdim=True, correction=0)
            ratio = deviation / noisy_deviation.clamp(min=torch.finfo(y.dtype).tiny)
            mixed = torch.lerp(noisy, (noisy - noisy_mean) * ratio + mean, self.mixing)
            return mixed * token_mask(y)[..., None]

        return ChangedEmbedding(module, annealed)

    def gamma(self, t: float) -> float:
        """Return the share of the condition at t, 1 at the start of the trajectory and 0 at its end."""
        low, high = self.tau
        return min(max((high - t) / (high - low), 0.0), 1.0)


class ConditionAnnealedGuidance(Guided):
    """CADS with classifier-free guidance, D_uncond + w (D_cads - D_uncond): the conditional branch is annealed.

    Two evaluations where w is not 1. At w = 1 the samples are those of D_cads alone.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 1.5,
        *,
        scale: float = 0.15,
        tau: tuple[float, float] = (0.5, 0.9),
        mixing: float = 1.0,
        unconditional: Denoiser | None = None,
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`scale`, `tau`, `mixing`, `layers` as in `AnnealedCondition`; the rest as in `ClassifierFreeGuidance`."""
        annealed = AnnealedCondition(scale, tau=tau, mixing=mixing, layers=layers)
        negative = unconditional if unconditional is not None else Unconditional(positive)
        super().__init__(
            [negative], [weight], positive=Perturbed([annealed], positive=positive), combination=combination
        )
