"""FreeDoM, and what Shen et al. add to it: random augmentation and Polyak steps.

Yu et al. 2023, https://arxiv.org/abs/2303.09833, algorithm 2; Shen et al. 2024, https://arxiv.org/abs/2403.12404,
algorithms 1 to 3. Their recurrence is `TimeTravel` around the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.augmentations import (
    Augmentation,
    ColorJitter,
    Cutout,
    Rescaled,
    Translation,
)
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.estimators import Augmented, Estimator
from lightning_guide.guidance.training_free.schedules import PowerLaw, SigmaWindow
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
    """The augmentations of Shen et al.: color, translation, resize, cutout."""
    return [ColorJitter(), Translation(), Rescaled(), Cutout()]


class FreeDoM(EnergyGuidance):
    """x' -= rate sqrt(1 + sigma'^2) grad_x loss(D): the rule sqrt(abar_t) of its face experiments.

    In the paper's form x_{t-1} -= rho sqrt(abar_t) grad_{x_t} loss, in 100 steps of `ProportionalAncestral` with eta
    .5 from time
    1000 to 200 (window from sigma = .72, rho .2 for segmentation) or 100 (.34; rho 20 for sketches).
    """

    def __init__(
        self,
        energy: Energy,
        rate: float,
        *,
        estimator: Estimator | None = None,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`rate` is the paper's rho. With an `Augmented` estimator: the random augmentation of Shen et al. alone."""
        rule = ConstantStep(rate, schedule=PowerLaw(scale_next=1))
        super().__init__(
            energy,
            [ThroughDenoiser(rule)],
            estimator=estimator,
            window=window,
            guide_batch=guide_batch,
            positive=positive,
        )


class FreeDoMCLIP(EnergyGuidance):
    """The rule of FreeDoM's experiments with CLIP: each step a share `rate` of the model's own.

    By `RootMeanSquareStep`."""

    def __init__(
        self,
        energy: Energy,
        rate: float = 0.02,
        *,
        estimator: Estimator | None = None,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`rate` is kappa."""
        super().__init__(
            energy,
            [ThroughDenoiser(RootMeanSquareStep(rate))],
            estimator=estimator,
            window=window,
            guide_batch=guide_batch,
            positive=positive,
        )


class AugmentedPolyak(EnergyGuidance):
    """Random augmentation and Polyak's step size, the method of Shen et al.

    x' -= rate sqrt((1 + sigma'^2) / (1 + sigma^2)) |noise| g / |g|^2 with g the gradient by x of the mean loss over
    augmented copies of D. Norms are of each sample (in the published code of the whole batch). The other three cells
    of the ablation: no `augmentations` here; `FreeDoM` with `Augmented`; `FreeDoM`.
    """

    def __init__(
        self,
        energy: Energy,
        rate: float,
        *,
        augmentations: Sequence[Augmentation] | None = None,
        copies: int = 10,
        cap: float | None = None,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`rate` is eta; `augmentations` default to the published policy, [] is none; `cap` as in `ClippedStep`."""
        drawn = policy() if augmentations is None else list(augmentations)
        rule: StepRule = NoiseScaledPolyakStep(rate)
        super().__init__(
            energy,
            [ThroughDenoiser(rule if cap is None else ClippedStep(rule, cap))],
            estimator=Augmented(drawn, copies if drawn else 1),
            window=window,
            guide_batch=guide_batch,
            positive=positive,
        )
