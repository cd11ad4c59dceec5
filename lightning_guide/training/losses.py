"""Training losses of a denoiser, with one noise level for each example; all are weighted errors of D.

* `EDMLoss`: E[lambda(s) / exp(u(s)) |D(y + s n) - y|^2 + u(s)] with lambda = (s^2 + s_d^2) / (s s_d)^2 and a learned
  log-uncertainty u (Karras et al. 2024, https://arxiv.org/abs/2312.02696, equations 14 and 15).
* `ScoreMatchingLoss`: E[s^2 |score(x) - target|^2], where the target is the exact score of a known distribution
  (explicit) or (y - x) / s^2 (denoising); Karras et al. 2024, https://arxiv.org/abs/2406.02507, appendix C.
* `EpsilonLoss`, `VelocityLoss`, `FlowMatchingLoss`: the error of the noise, of the velocity v and of the flow n - y. In
  x = y + s n their errors are |D - y|^2 times 1 / s^2, (1 + s^2) / s^2 and (1 + s)^2 / s^2, whatever the network
  predicts. Min-SNR weighting: Hang et al. 2023, https://arxiv.org/abs/2303.09556.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, expand
from lightning_guide.networks.magnitude_preserving import MPFourier, MPLinear, normalize_weights_
from lightning_guide.noise import LogNormal, NoiseDistribution
from lightning_guide.noise_schedule import NoiseSchedule, UniformTimestep

__all__ = [
    "EDMLoss",
    "EpsilonLoss",
    "FlowMatchingLoss",
    "LossTerms",
    "PredictionLoss",
    "ScoreMatchingLoss",
    "TrainingLoss",
    "Uncertainty",
    "VelocityLoss",
    "WeightedLoss",
]


@dataclass(frozen=True)
class LossTerms:
    """Loss terms of each example (B,): `objective` (minimized), weighted `error`, and noise level `sigma`."""

    objective: Tensor
    error: Tensor
    sigma: Tensor


class TrainingLoss(nn.Module, ABC):
    """Base of the losses: draws noise levels and noise, at which subclasses define the terms (`at`)."""

    def __init__(self, noise: NoiseDistribution | None = None) -> None:
        """Configure the distribution `noise` of the noise level; default LogNormal(-1.2, 1.2)."""
        super().__init__()
        self.noise = noise or LogNormal()

    def forward(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> LossTerms:
        """Return the terms for the clean examples `clean` (B, *); all draws are from `generator`."""
        sigma = self.noise.sample(len(clean), generator)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return self.at(denoiser, clean, condition, sigma, noise)

    @abstractmethod
    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        """Return the terms at given noise levels `sigma` (B,) with given standard normal `noise` (B, *)."""

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a `denoiser` that lacks an input of this loss, with a ValueError; nothing by default."""

    def constrain(self) -> None:
        """Normalize the weights of a learned part after an optimizer step."""
        normalize_weights_(self)


class PredictionLoss(TrainingLoss):
    """Base of the losses of the denoiser's estimate of noised examples."""

    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        """Return the terms of D(clean + sigma noise; sigma)."""
        noised = clean + expand(sigma, clean) * noise
        return self.compare(denoiser(noised, sigma, condition), clean, noised, sigma, denoiser.sigma_data)

    @abstractmethod
    def compare(self, denoised: Tensor, clean: Tensor, noised: Tensor, sigma: Tensor, sigma_data: float) -> LossTerms:
        """Return the terms of an estimate `denoised` (B, *); `sigma_data`: standard deviation of the data."""


class Uncertainty(nn.Module):
    """Learned log-uncertainty u(sigma) of the weighted error: a linear map of Fourier features of ln(sigma) / 4."""

    def __init__(self, channels: int = 128) -> None:
        """Configure the number of Fourier features (`channels`)."""
        super().__init__()
        self.fourier, self.linear = MPFourier(channels), MPLinear(channels, 1)

    def forward(self, sigma: Tensor) -> Tensor:
        """Return u `(B,)` of `sigma` (B,)."""
        return self.linear(self.fourier(sigma.log() / 4)).squeeze(-1)


class EDMLoss(PredictionLoss):
    """EDM loss lambda / exp(u) |D - y|^2 + u, averaged over the elements of an example.

    Examples:
        >>> loss = EDMLoss(uncertainty=False)
        >>> clean, noised, sigma = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.5])
        >>> loss.compare(torch.zeros(1, 2), clean, noised, sigma, sigma_data=0.5).error  # lambda(0.5) = 8
        tensor([8.])
    """

    def __init__(self, noise: NoiseDistribution | None = None, *, uncertainty: bool = True) -> None:
        """Configure the noise levels; `uncertainty`: learn u(sigma), else u = 0."""
        super().__init__(noise)
        self.uncertainty = Uncertainty() if uncertainty else None

    def compare(self, denoised: Tensor, clean: Tensor, noised: Tensor, sigma: Tensor, sigma_data: float) -> LossTerms:
        """Return the terms; `error` is lambda |D - y|^2, about 1 for an untrained denoiser at every level."""
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        error = weight * (denoised - clean).square().flatten(1).mean(1)
        if self.uncertainty is None:
            return LossTerms(error, error, sigma)
        u = self.uncertainty(sigma)
        return LossTerms(error / u.exp() + u, error, sigma)


class WeightedLoss(PredictionLoss):
    """Base of the losses weight(s) |D - y|^2, averaged over the elements of an example."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of |D - y|^2 at `sigma` (B,)."""

    def compare(self, denoised: Tensor, clean: Tensor, noised: Tensor, sigma: Tensor, sigma_data: float) -> LossTerms:
        """Return the terms; `error` equals the objective."""
        error = self.weight(sigma) * (denoised - clean).square().flatten(1).mean(1)
        return LossTerms(error, error, sigma)


class FlowMatchingLoss(WeightedLoss):
    """Flow matching: |u - (n - y)|^2 of the flow u, that is |D - y|^2 (1 + s)^2 / s^2.

    Examples:
        >>> loss = FlowMatchingLoss()
        >>> clean, sigma = torch.ones(1, 2), torch.tensor([1.0])
        >>> loss.compare(torch.zeros(1, 2), clean, clean, sigma, sigma_data=1.0).error  # weight (1 + 1)^2 / 1
        tensor([4.])
    """

    def __init__(self, noise: NoiseDistribution | None = None) -> None:
        """Configure the times t = s / (1 + s) by their levels; default logit-normal(0, 1), or `UniformTime`."""
        super().__init__(noise or LogNormal(0.0, 1.0))

    def weight(self, sigma: Tensor) -> Tensor:
        """Return (1 + s)^2 / s^2."""
        return ((1 + sigma) / sigma) ** 2


class VelocityLoss(WeightedLoss):
    """|v - (n - s y) / sqrt(1 + s^2)|^2 of the velocity v, that is |D - y|^2 (1 + s^2) / s^2.

    With a finite `min_snr` gamma the weight is min(1 / s^2, gamma) instead, as for `EpsilonLoss`.
    """

    def __init__(self, noise: NoiseDistribution | None = None, *, min_snr: float = math.inf) -> None:
        """Configure the levels, by default those of DDPM's timesteps, and the gamma of min-SNR weighting (paper: 5).

        Raises:
            ValueError: unless gamma is positive.
        """
        super().__init__(noise or UniformTimestep(NoiseSchedule()))
        if not min_snr > 0:
            raise ValueError(f"min_snr must be positive, got {min_snr}")
        self.min_snr = min_snr

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of |D - y|^2 at `sigma` (B,)."""
        snr = sigma**-2
        return 1 + snr if self.min_snr == math.inf else snr.clamp(max=self.min_snr)


class EpsilonLoss(VelocityLoss):
    """|e - n|^2 of the noise e, that is |D - y|^2 / s^2, limited to |D - y|^2 `min_snr`."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of |D - y|^2 at `sigma` (B,)."""
        return (sigma**-2).clamp(max=self.min_snr)


class ScoreMatchingLoss(PredictionLoss):
    """Score matching loss s^2 |score - target|^2 = |D - D*|^2 / s^2, averaged over the elements of an example."""

    def __init__(self, noise: NoiseDistribution | None = None, *, exact: nn.Module | None = None) -> None:
        """Configure the target: the score of a distribution `exact` with `denoise(x, sigma)`, or None: D* = y.

        Raises:
            ValueError: if `exact` lacks `denoise`.
        """
        super().__init__(noise)
        if exact is not None and not hasattr(exact, "denoise"):
            raise ValueError(
                f"exact scores need a distribution with denoise(x, sigma); {type(exact).__name__} has none"
            )
        self.exact = exact

    def compare(self, denoised: Tensor, clean: Tensor, noised: Tensor, sigma: Tensor, sigma_data: float) -> LossTerms:
        """Return the terms; `error` equals the objective."""
        target = clean
        if self.exact is not None:
            with torch.no_grad():
                target = self.exact.denoise(noised, sigma)  # type: ignore[operator]
        error = (denoised - target).square().flatten(1).mean(1) / sigma**2
        return LossTerms(error, error, sigma)
