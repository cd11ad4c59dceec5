"""Guidance-free training (GFT): a model that learns its own guided predictions, sampled by one call.

Chen et al. 2025, "Visual Generation Without Guidance", https://arxiv.org/abs/2501.15420, equations as we know them; the
paper was not read. With beta uniform in [0, 1] for each example, 1 for those without condition,

    D = beta D(x, c, beta) + (1 - beta) stopgrad(D(x, no condition, 1))

takes the place of D in the loss of the conditional model. Its minimum is D = D_c, so

    D(x, c, beta) = D_u + (D_c - D_u) / beta,

which is classifier-free guidance of the weight w = 1 / beta.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.conditioning import conditioned_rows
from lightning_guide.denoiser import Denoiser, expand
from lightning_guide.networks.gft import BetaConditioned
from lightning_guide.training.losses import LossTerms, PredictionLoss, TrainingLoss

__all__ = ["GuidanceFreeLoss"]


class GuidanceFreeLoss(TrainingLoss):
    """GFT with the weights of another `loss`; held-out losses are those of the conditional model, beta = 1.

    Needs `BetaConditioned` and a `label_dropout`, 0.1 for example, by which the model without condition is trained. A
    step costs one forward pass more than that of `loss`.
    """

    def __init__(self, loss: PredictionLoss) -> None:
        """Train by `loss`, EDMLoss for example, at its noise levels."""
        super().__init__(loss.noise)
        self.loss = loss

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a model without the input beta.

        Raises:
            ValueError: naming its class.
        """
        if not isinstance(denoiser, BetaConditioned):
            raise ValueError(
                f"GuidanceFreeLoss trains BetaConditioned, a model with the input beta, got a {type(denoiser).__name__}"
            )

    def forward(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> LossTerms:
        """Return the terms for the clean examples `clean` (B, *); all draws are from `generator`."""
        sigma = self.noise.sample(len(clean), generator)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        beta = torch.rand(len(clean), generator=generator, device=clean.device)
        return self.mixed(denoiser, clean, condition, sigma, noise, beta)

    def mixed(
        self,
        denoiser: Denoiser,
        clean: Tensor,
        condition: Tensor | None,
        sigma: Tensor,
        noise: Tensor,
        beta: Tensor,
    ) -> LossTerms:
        """Return the terms at given `sigma` (B,), `noise` (B, *) and `beta` (B,)."""
        if condition is None:
            return self.at(denoiser, clean, None, sigma, noise)
        beta = torch.where(conditioned_rows(condition), beta, 1.0)
        noised = clean + expand(sigma, clean) * noise
        with torch.no_grad():
            unconditional = denoiser(noised, sigma, None)
        guided, share = denoiser(noised, sigma, condition, beta=beta), expand(beta, clean).to(unconditional)
        mixed = torch.lerp(unconditional, guided, share)
        return self.loss.compare(mixed, clean, noised, sigma, denoiser.sigma_data)

    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        """Return the terms of `loss` for the conditional model."""
        return self.loss.at(denoiser, clean, condition, sigma, noise)
