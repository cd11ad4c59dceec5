"""CFG++: classifier-free guidance that interpolates and re-noises along the unconditional branch.

Chung et al. 2025, https://arxiv.org/abs/2406.08070.
"""

from __future__ import annotations

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.combinations.cfg_pp import RenoiseWithNegative
from lightning_guide.guidance.negatives.cfg import ClassifierFreeGuidance
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["ClassifierFreeGuidancePP"]


class ClassifierFreeGuidancePP(ClassifierFreeGuidance):
    """CFG++: clean = D_uncond + w (D_cond - D_uncond), noise = (x - D_uncond) / sigma, w = lambda. Two evaluations.

    Both branches are evaluated at every weight except w = 0, which is the unconditional model. On Stable Diffusion
    lambda = 0.6 acts like w = 7.5 of classifier-free guidance. Outside an interval lambda is 1, which is not off.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 0.6,
        *,
        unconditional: Denoiser | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """`weight` lambda in [0, 1]; `unconditional` defaults to `positive` without its label.

        Raises:
            ValueError: if the weight is a number outside [0, 1].
        """
        if isinstance(weight, int | float) and not 0 <= weight <= 1:
            raise ValueError(f"CFG++ interpolates: it needs a weight between 0 and 1, got {weight}")
        super().__init__(weight, unconditional=unconditional, positive=positive, combination=RenoiseWithNegative())
