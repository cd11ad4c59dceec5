"""Every named method of training-free guidance with test settings, and the distributions and losses of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    TFG,
    AdamDPS,
    AddedNoise,
    Augmented,
    AugmentedPolyak,
    ConstantStep,
    EnergyGuidance,
    FreeDoM,
    FreeDoMCLIP,
    LossGuidedDiffusion,
    MPGDLatent,
    NormalizedStep,
    PolyakStep,
    UniversalGuidance,
)
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy
from lightning_guide.pretrained import Subspace
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds

DIM = 3
GRID = KarrasGrid(6, sigma_min=0.1, sigma_max=5.0)


def mixture(labels: list[int] | None = None) -> GaussianMixture:
    """Return a mixture of three components of different shapes in three dimensions."""
    means = torch.tensor([[-1.0, 0.2, 0.5], [1.0, 0.5, -0.3], [0.1, -1.0, 0.8]])
    root = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.3, 0.2], [0.1, 0.0, 0.4]])
    roots = torch.stack([root, 0.7 * root, 1.4 * root])
    return GaussianMixture(means, roots @ roots.mT, [1.0, 2.0, 1.0], labels=labels)


class Bend(Energy):
    """A smooth loss that is neither quadratic nor symmetric, above zero."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return 0.3 + (x[:, 0] - 0.7).square() + 0.5 * (1 + (2 * x[:, 1] - x[:, 2]).exp()).log()


def basis() -> Tensor:
    """Return two orthonormal columns in three dimensions."""
    return torch.linalg.qr(torch.tensor([[1.0, 0.2], [0.3, 1.0], [-0.4, 0.5]], dtype=torch.float64))[0]


Make = Callable[[Energy, Denoiser], EnergyGuidance]

METHODS: dict[str, Make] = {
    "UG forward": lambda loss, positive: UniversalGuidance(loss, 0.4, positive=positive),
    "UG backward": lambda loss, positive: UniversalGuidance(loss, 0.0, backward_steps=3, positive=positive),
    "UG": lambda loss, positive: UniversalGuidance(
        loss, 0.4, backward_steps=2, backward=ConstantStep(0.1), positive=positive
    ),
    "LGD": lambda loss, positive: LossGuidedDiffusion(loss, 0.8, draws=4, positive=positive),
    "DPS": lambda loss, positive: DPS(loss, 0.3, positive=positive),
    "AdamDPS": lambda loss, positive: AdamDPS(loss, 0.05, beta1=0.3, beta2=0.8, positive=positive),
    "FreeDoM": lambda loss, positive: FreeDoM(loss, 0.5, positive=positive),
    "FreeDoM RA": lambda loss, positive: FreeDoM(
        loss, 0.5, estimator=Augmented([AddedNoise(0.3)], 5), positive=positive
    ),
    "FreeDoM CLIP": lambda loss, positive: FreeDoMCLIP(loss, 0.2, positive=positive),
    "Polyak": lambda loss, positive: AugmentedPolyak(loss, 0.05, augmentations=[], positive=positive),
    "RA Polyak": lambda loss, positive: AugmentedPolyak(
        loss, 0.05, augmentations=[AddedNoise(0.3)], copies=5, positive=positive
    ),
    "Polyak capped": lambda loss, positive: AugmentedPolyak(loss, 0.5, augmentations=[], cap=0.3, positive=positive),
    "true Polyak": lambda loss, positive: EnergyGuidance(loss, [ThroughDenoiser(PolyakStep(0.3))], positive=positive),
    "normalized": lambda loss, positive: EnergyGuidance(
        loss, [ThroughDenoiser(NormalizedStep(0.2))], positive=positive
    ),
    "MPGD": lambda loss, positive: MPGD(loss, 0.2, positive=positive),
    "MPGD-AE": lambda loss, positive: MPGD(loss, 0.2, autoencoder=Subspace(basis()), positive=positive),
    "MPGD-Z": lambda loss, positive: MPGDLatent(loss, Subspace(basis()), 0.2, positive=positive),
    "TFG": lambda loss, positive: TFG(loss, 0.2, 0.1, 0.3, iterations=3, draws=2, positive=positive),
    "TFG decrease": lambda loss, positive: TFG(
        loss, 0.2, 0.1, iterations=2, rho_schedule="decrease", mu_schedule="constant", positive=positive
    ),
}


def draw_samples(
    denoiser: Denoiser,
    sampler: Sampler,
    count: int = 5,
    *,
    indices: list[int] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Draw samples in float64 of the indices (default 0 ... count - 1) under seed 3, from `start` or their noise."""
    seeds = SampleSeeds(3, range(count) if indices is None else indices)
    x = sampler.initial(denoiser, seeds).double() if start is None else start
    *_, end = sampler.steps(denoiser, x, seeds=seeds)
    return end.x
