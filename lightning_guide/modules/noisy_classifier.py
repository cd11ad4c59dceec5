"""Training of a classifier of noisy pictures, for classifier guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import expand
from lightning_guide.modules.classifier import ClassifierModule
from lightning_guide.networks.noisy_classifier import NoisyClassifier
from lightning_guide.noise import LogUniform, NoiseDistribution

__all__ = ["NoisyClassifierModule"]


class NoisyClassifierModule(ClassifierModule):
    """`ClassifierModule` on x + sigma n, with sigma told to the network. Its held-out numbers are means over sigma."""

    def __init__(self, network: NoisyClassifier, *, noise: NoiseDistribution | None = None, **options: Any) -> None:
        """Configures training.

        Args:
            network: the classifier.
            noise: distribution of the noise level; default: ln sigma uniform between ln .002 and ln 80.
            options: as for `ClassifierModule`.
        """
        super().__init__(network, **options)
        self.noise = noise or LogUniform()

    def logits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the network answers (B, K) for `x` (B, C, H, W) with fresh noise."""
        sigma = self.noise.sample(len(x), generator)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        answer: Tensor = self.network(x + expand(sigma, x) * noise, sigma)
        return answer
