"""Entropy rectifying guidance (ERG): the attention of the negative has a higher temperature.

Ifriqi et al. 2025, "Entropy Rectifying Guidance for Diffusion and Flow Models", https://arxiv.org/abs/2504.13987.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention import AttentionPerturbation, ChangedQueries
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["EntropyRectifyingGuidance", "ScaledQueries"]


class ScaledQueries(AttentionPerturbation):
    """softmax(tau q k^T / sqrt(d)) v; tau = 1 changes nothing, tau = 0 is uniform attention."""

    static = True

    def __init__(self, tau: float = 0.01, *, layers: Sequence[str] | None = None) -> None:
        """`tau` >= 0; `layers`: attention cores.

        Raises:
            ValueError: if `tau` is negative or not finite.
        """
        super().__init__(layers=layers)
        if not (tau >= 0 and math.isfinite(tau)):
            raise ValueError(f"ERG needs a finite tau >= 0, 1 is off, got {tau}")
        self.tau = tau

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the core with scaled queries."""
        tau = self.tau

        def scaled(q: Tensor, size: tuple[int, int] | None) -> Tensor:
            return tau * q

        return module if tau == 1 else ChangedQueries(module, scaled)


class EntropyRectifyingGuidance(Guided):
    """ERG, D_erg + w (D - D_erg), D_erg with queries times tau. Two evaluations; needs attention.

    The paper also perturbs the text encoder and adds a classifier-free term; this class is its attention part alone.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 2.0,
        *,
        tau: float = 0.01,
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`tau` scales the queries, 1 is off; `layers`: attention cores."""
        negative = Perturbed([ScaledQueries(tau, layers=layers)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
