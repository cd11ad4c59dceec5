"""Perturbed-attention guidance: the attention map of the negative is the identity.

Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
https://arxiv.org/abs/2403.17377; soft interpolation: https://arxiv.org/abs/2506.10978.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combination import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbed import Perturbation, Perturbed
from lightning_guide.guidance.weights import WeightSchedule

__all__ = ["IdentityAttention", "PerturbedAttentionGuidance"]


class _ValuesAlone(nn.Module):
    """softmax(...) = I: every token attends to itself."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return v


class IdentityAttention(Perturbation):
    """Attention map A = I, so that the core returns its values; queries and keys are not used."""

    kind = "attention"

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """The values alone."""
        return _ValuesAlone()


class PerturbedAttentionGuidance(Guided):
    """D_pag + w (D - D_pag), D_pag with identity attention in the chosen layers. Two evaluations; needs attention.

    The paper's s is w - 1 (s = 3 on ADM).
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 2.0,
        *,
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`layers`: attention cores by name or pattern; None: the default of the architecture."""
        negative = Perturbed([IdentityAttention(layers=layers)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
