"""FreeDoM, Yu et al. 2023, https://arxiv.org/abs/2303.09833, algorithm 2, and its extension by Shen et al. 2024.

Shen et al., https://arxiv.org/abs/2403.12404, algorithms 1 to 3, add random augmentation and Polyak steps. The
recurrence of both is `TimeTravel` around the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_guide.guidance.training_free.augmentations import (
    Augmentation,
    ColorJitter,
    Cutout,
    Rescaled,
    Translation,
)
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.estimators import Augmented
from lightning_guide.guidance.training_free.schedules import PowerLaw
from lightning_guide.guidance.training_free.step_rules import (
    ClippedStep,
    ConstantStep,
    NoiseScaledPolyakStep,
    RootMeanSquareStep,
    StepRule,
)
from lightning_guide.guidance.training_free.updates import ThroughDenoiser
from lightning_guide.objectives.energy import Energy

__all__ = ["AugmentedPolyak", "FreeDoM", "FreeDoMCLIP", "policy"]


def policy() -> list[Augmentation]:
    """Return the augmentations of Shen et al.: color, translation, resize, cutout."""
    return [ColorJitter(), Translation(), Rescaled(), Cutout()]


class FreeDoM(EnergyGuidance):
    """FreeDoM: x' -= rate sqrt(1 + sigma'^2) grad_x loss(D), the rule sqrt(abar_t) of its face experiments.

    In the paper's form x_{t-1} -= rho sqrt(abar_t) grad_{x_t} loss, in 100 steps of `ProportionalAncestral` with eta
    0.5. It guides from time 1000 to 200 (a window from sigma = 0.72, rho 0.2 for segmentation) or 100 (0.34; rho 20 for
    sketches).
    """

    def __init__(self, energy: Energy, rate: float, **options: Any) -> None:
        """Guide by `energy`. An `Augmented` estimator makes it the random augmentation of Shen et al. alone.

        Args:
            energy: the loss.
            rate: the paper's rho.
            **options: `estimator`, `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        rule = ConstantStep(rate, schedule=PowerLaw(scale_next=1))
        super().__init__(energy, [ThroughDenoiser(rule)], noise="kept", **options)


class FreeDoMCLIP(EnergyGuidance):
    """FreeDoM's rule for experiments with CLIP: a fraction `rate` of the model's own step, by `RootMeanSquareStep`."""

    def __init__(self, energy: Energy, rate: float = 0.02, **options: Any) -> None:
        """Guide by `energy`.

        Args:
            energy: the loss.
            rate: kappa.
            **options: `estimator`, `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        super().__init__(energy, [ThroughDenoiser(RootMeanSquareStep(rate))], noise="kept", **options)


class AugmentedPolyak(EnergyGuidance):
    """FreeDoM with random augmentation and Polyak's step size, the method of Shen et al.

    x' -= rate sqrt((1 + sigma'^2) / (1 + sigma^2)) |noise| g / |g|^2 with g the gradient by x of the mean loss over
    augmented copies of D. Norms are taken per sample (in the published code over the whole batch). The other three
    cells of the ablation: no `augmentations` here; `FreeDoM` with `Augmented`; `FreeDoM`.
    """

    def __init__(
        self,
        energy: Energy,
        rate: float,
        *,
        augmentations: Sequence[Augmentation] | None = None,
        copies: int = 10,
        cap: float | None = None,
        **options: Any,
    ) -> None:
        """Guide by the mean loss of augmented copies.

        Args:
            energy: the loss.
            rate: eta.
            augmentations: default: the published policy; [] for no augmentation.
            copies: copies of each sample.
            cap: as in `ClippedStep`.
            **options: `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        chosen = policy() if augmentations is None else list(augmentations)
        rule: StepRule = NoiseScaledPolyakStep(rate)
        update = ThroughDenoiser(rule if cap is None else ClippedStep(rule, cap))
        estimator = Augmented(chosen, copies if chosen else 1)
        super().__init__(energy, [update], estimator=estimator, noise="kept", **options)
