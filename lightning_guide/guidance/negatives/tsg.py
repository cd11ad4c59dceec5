"""Time-step guidance (TSG): the negative receives a perturbed embedding of the noise level.

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models",
https://arxiv.org/abs/2407.02687, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import ChangedEmbedding, Perturbed, Replacement
from lightning_guide.guidance.schedules import StepWindow, WeightSchedule

__all__ = ["NoisyNoiseEmbedding", "TimeStepGuidance"]


class NoisyNoiseEmbedding(Replacement):
    """e + s t^alpha std(e) n for the embedding e (B, E) of the noise level; n is drawn at each call.

    std is that of each sample's E numbers. t = 1 - step / steps falls from 1 to 1 / steps: the paper's t is the time
    step of a network trained on a uniform grid; its range from 0 to 1 is inferred, not stated there. s = 0 changes
    nothing.
    """

    kind = "noise_embedding"

    def __init__(self, scale: float = 2.0, power: float = 1.0, *, layers: Sequence[str] | None = None) -> None:
        """`scale` s and `power` alpha (0: constant); `layers`: modules from c_noise (B,) to (B, E).

        Raises:
            ValueError: if one is negative or not finite.
        """
        super().__init__(layers=layers)
        if not (scale >= 0 and power >= 0 and math.isfinite(scale + power)):
            raise ValueError(f"TSG needs finite scale >= 0 and power >= 0, got {scale} and {power}")
        self.scale, self.power = scale, power

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the embedding with noise."""

        def noisy(e: Tensor) -> Tensor:
            t = 1 - trajectory.step / trajectory.steps
            n = trajectory.seeds.normal("noise embedding", e.shape[1:], e.device).to(e.dtype)
            return e + self.scale * t**self.power * e.std(dim=-1, keepdim=True, correction=0) * n

        return ChangedEmbedding(module, noisy) if self.scale else module


class TimeStepGuidance(Guided):
    """TSG, D_tsg + w (D - D_tsg), D_tsg with a noisy noise embedding. Two evaluations where low < t <= high, else one.

    Published for DiT: w = 2.5, s = 2, alpha = 1 everywhere with labels; w = 5, s = 1, alpha = 0 in (0.2, 0.8] without.
    The paper may also restrict the noise to the first layers; here it reaches all layers.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 2.5,
        *,
        scale: float = 2.0,
        power: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`scale` s and `power` alpha; `interval` (low, high] of t = 1 - step / steps.

        Raises:
            ValueError: unless 0 <= low < high <= 1.
        """
        negative = Perturbed([NoisyNoiseEmbedding(scale, power, layers=layers)], positive=positive)
        low, high = interval
        window = StepWindow(1 - high, 1 - low, combination)
        super().__init__([negative], [weight], positive=positive, combination=window)
