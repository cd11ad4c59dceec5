"""Manifold-preserving guided diffusion. He et al. 2024 (MPGD), https://arxiv.org/abs/2311.16424, algorithms 1 to 3."""

from __future__ import annotations

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free.base import EnergyGuidance
from lightning_guide.guidance.training_free.schedules import SigmaWindow
from lightning_guide.guidance.training_free.step_rules import ConstantStep, StepRule
from lightning_guide.guidance.training_free.updates import AtClean, InLatent
from lightning_guide.objectives.energy import Energy, Reconstructed
from lightning_guide.pretrained.autoencoders import Autoencoder

__all__ = ["MPGD", "MPGDLatent"]


class MPGD(EnergyGuidance):
    """D - rate grad_D loss(D), the noise as it was; with an `autoencoder` the loss is that of what it makes of D.

    No derivative of the denoiser. The paper's step is c_t sqrt(abar_{t-1}) in x_{t-1}, which is c_t here.
    """

    def __init__(
        self,
        energy: Energy,
        rate: float = 1.0,
        *,
        rule: StepRule | None = None,
        autoencoder: Autoencoder | None = None,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """A constant `rate`, unless a `rule` takes its place: `RootMeanSquare` or `Normalized` in its experiments."""
        super().__init__(
            energy if autoencoder is None else Reconstructed(energy, autoencoder),
            [AtClean(rule or ConstantStep(rate))],
            window=window,
            guide_batch=guide_batch,
            positive=positive,
        )


class MPGDLatent(EnergyGuidance):
    """MPGD-Z: z = encode(D), z' = z - rate grad_z loss(decode(z)), D + decode(z') - decode(z), the noise as it was."""

    def __init__(
        self,
        energy: Energy,
        autoencoder: Autoencoder,
        rate: float = 1.0,
        *,
        rule: StepRule | None = None,
        window: SigmaWindow | None = None,
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """As `MPGD`."""
        super().__init__(
            energy,
            [InLatent(autoencoder, rule or ConstantStep(rate))],
            window=window,
            guide_batch=guide_batch,
            positive=positive,
        )
