"""The methods of training-free guidance with one rate each, for energy_comparison.py and bench_energy.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    TFG,
    AdamDPS,
    Augmented,
    AugmentedPolyak,
    ClassifierGuidance,
    EluCD,
    FreeDoM,
    FreeDoMCLIP,
    LossGuidedDiffusion,
    MPGDLatent,
    UniversalGuidance,
)
from lightning_guide.guidance.training_free.freedom import policy
from lightning_guide.objectives import Energy
from lightning_guide.pretrained import Autoencoder

__all__ = ["LABELS_ONLY", "METHODS", "Make", "Wish", "methods_for"]


@dataclass(frozen=True)
class Wish:
    """What is wanted of `positive`, and what a method may use to get it.

    `classifier` and `noisy`, classifiers of clean and of noisy pictures, are there if a class is wanted.
    """

    energy: Energy
    positive: Denoiser
    autoencoder: Autoencoder
    classifier: nn.Module | None = None
    noisy: nn.Module | None = None


Make = Callable[[Wish, float], Denoiser]
METHODS: dict[str, Make] = {
    "UG": lambda w, rate: UniversalGuidance(w.energy, rate, positive=w.positive),
    "UG, backward": lambda w, rate: UniversalGuidance(w.energy, rate, backward_steps=5, positive=w.positive),
    "LGD, 10 draws": lambda w, rate: LossGuidedDiffusion(w.energy, rate, positive=w.positive),
    "DPS": lambda w, rate: DPS(w.energy, 0.3 * rate, positive=w.positive),
    "AdamDPS": lambda w, rate: AdamDPS(w.energy, 0.03 * rate, positive=w.positive),
    "FreeDoM": lambda w, rate: FreeDoM(w.energy, 0.3 * rate, positive=w.positive),
    "FreeDoM, rms": lambda w, rate: FreeDoMCLIP(w.energy, 0.1 * rate, positive=w.positive),
    "Polyak": lambda w, rate: AugmentedPolyak(w.energy, 0.03 * rate, augmentations=[], positive=w.positive),
    "Polyak, capped": lambda w, rate: AugmentedPolyak(
        w.energy, 0.03 * rate, augmentations=[], cap=0.3, positive=w.positive
    ),
    "MPGD": lambda w, rate: MPGD(w.energy, 0.3 * rate, positive=w.positive),
    "MPGD, latent": lambda w, rate: MPGDLatent(w.energy, w.autoencoder, 0.3 * rate, positive=w.positive),
    "TFG": lambda w, rate: TFG(w.energy, 0.3 * rate, 0.075 * rate, 0.01, positive=w.positive),
}
LABELS_ONLY: dict[str, Make] = {
    "FreeDoM + RA": lambda w, rate: FreeDoM(
        w.energy, 0.3 * rate, estimator=Augmented(policy(), 10), positive=w.positive
    ),
    "Polyak + RA": lambda w, rate: AugmentedPolyak(w.energy, 0.03 * rate, positive=w.positive),
    "Polyak + RA, capped": lambda w, rate: AugmentedPolyak(w.energy, 0.03 * rate, cap=0.3, positive=w.positive),
    "EluCD": lambda w, rate: EluCD(_there(w.classifier), rate, positive=w.positive),
    "trained on noise": lambda w, rate: ClassifierGuidance(_there(w.noisy), rate, positive=w.positive),
}
"""Classifiers need a class, and augmentation moves what a measurement has fixed."""


def methods_for(wish: Wish) -> dict[str, Make]:
    """The methods that can grant it."""
    return METHODS | (LABELS_ONLY if wish.classifier is not None else {})


def _there(network: nn.Module | None) -> nn.Module:
    assert network is not None, "no class is wanted"
    return network
