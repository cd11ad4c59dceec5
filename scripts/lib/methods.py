"""The methods of training-free guidance, each with one rate to be tuned."""

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

__all__ = ["LABELS_ONLY", "METHODS", "Make", "Task", "methods_for"]


@dataclass(frozen=True)
class Task:
    """Guidance of `positive` by `energy`, and the networks that a method may use for it.

    `classifier` and `noisy` classify clean and noisy images; they are given if the target is a class.
    """

    energy: Energy
    positive: Denoiser
    autoencoder: Autoencoder
    classifier: nn.Module | None = None
    noisy: nn.Module | None = None


Make = Callable[[Task, float], Denoiser]
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
    "EluCD": lambda w, rate: EluCD(_required(w.classifier), rate, positive=w.positive),
    "trained on noise": lambda w, rate: ClassifierGuidance(_required(w.noisy), rate, positive=w.positive),
}
"""Methods for classes only: classifiers need a class, and augmentation changes measured pixels."""


def methods_for(task: Task) -> dict[str, Make]:
    """Return the methods that apply to a task."""
    return METHODS | (LABELS_ONLY if task.classifier is not None else {})


def _required(network: nn.Module | None) -> nn.Module:
    assert network is not None, "the task has no class"
    return network
