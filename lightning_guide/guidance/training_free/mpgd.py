"""Manifold-preserving guided diffusion (MPGD), He et al. 2024, https://arxiv.org/abs/2311.16424, algorithms 1 to 3."""

from __future__ import annotations

from typing import Any

from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.step_rules import ConstantStep, StepRule
from lightning_guide.guidance.training_free.updates import AtClean, InLatent
from lightning_guide.objectives.composition import Reconstructed
from lightning_guide.objectives.energy import Energy
from lightning_guide.pretrained.autoencoders import Autoencoder

__all__ = ["MPGD", "MPGDLatent"]


class MPGD(EnergyGuidance):
    """Manifold-preserving guided diffusion (MPGD): D - rate grad_D loss(D), the noise kept.

    With an `autoencoder` the loss is evaluated at the reconstruction of D. No derivative of the denoiser. The paper's
    step is c_t sqrt(abar_{t-1}) in x_{t-1}, which is c_t here.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions import gaussian
        >>> from lightning_guide.objectives import SquaredDistance
        >>> guide = MPGD(SquaredDistance([3.0]), rate=0.5, positive=gaussian([0.0], 1.0))
        >>> guide(torch.tensor([[2.0]]), torch.tensor(1.0))  # D = 1, halfway to 3
        tensor([[2.]])
    """

    def __init__(
        self,
        energy: Energy,
        rate: float = 1.0,
        *,
        rule: StepRule | None = None,
        autoencoder: Autoencoder | None = None,
        **options: Any,
    ) -> None:
        """Guide by `energy`.

        Args:
            energy: the loss.
            rate: size of a constant step.
            rule: replaces the constant step; `RootMeanSquareStep` or `NormalizedStep` in the paper's experiments.
            autoencoder: reconstructs D before the loss.
            **options: `window`, `guide_batch` and `positive` of `EnergyGuidance`.
        """
        loss = energy if autoencoder is None else Reconstructed(energy, autoencoder)
        super().__init__(loss, [AtClean(rule or ConstantStep(rate))], estimator=None, noise="kept", **options)


class MPGDLatent(EnergyGuidance):
    """MPGD in a latent space (MPGD-Z): z = encode(D), z' = z - rate grad_z loss(decode(z)), D + decode(z') - decode(z).

    The noise is kept.
    """

    def __init__(
        self,
        energy: Energy,
        autoencoder: Autoencoder,
        rate: float = 1.0,
        *,
        rule: StepRule | None = None,
        **options: Any,
    ) -> None:
        """As `MPGD`, with steps in the latent space of `autoencoder`."""
        update = InLatent(autoencoder, rule or ConstantStep(rate))
        super().__init__(energy, [update], estimator=None, noise="kept", **options)
