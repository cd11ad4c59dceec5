"""Perturbed-attention guidance (PAG): the attention map of the negative is the identity, or moved toward it.

Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
https://arxiv.org/abs/2403.17377; soft interpolation: https://arxiv.org/abs/2506.10978.
In joint attention a token attends to itself and to all texts, as only the attention between tokens of the image is
perturbed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention import AttentionPerturbation
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.networks.attention import AttentionCore

__all__ = ["IdentityAttention", "PerturbedAttentionGuidance", "SoftIdentityAttention"]


class _IdentityCore(AttentionCore):
    """A = I: every token attends to itself; in joint attention to itself and to texts."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        N = q.shape[-2]
        if N == v.shape[-2]:
            return v
        own = (q * k[..., :N, :]).sum(-1, keepdim=True)
        A = (torch.cat([own, q @ k[..., N:, :].mT], -1) / math.sqrt(q.shape[-1])).softmax(
            -1
        )  # (B, heads, N, 1 + M - N)
        return A[..., :1] * v[..., :N, :] + A[..., 1:] @ v[..., N:, :]


class _SoftIdentityCore(AttentionCore):
    """(1 - alpha) A v + alpha v."""

    def __init__(self, core: nn.Module, alpha: float) -> None:
        super().__init__()
        self.core, self.alpha, self.identity = core, alpha, _IdentityCore()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        return torch.lerp(self.core(q, k, v, size), self.identity(q, k, v, size), self.alpha)


class IdentityAttention(AttentionPerturbation):
    """Attention map A = I, so that the core returns its values; queries and keys are not used."""

    static = True

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return a core that returns the values."""
        return _IdentityCore()


class SoftIdentityAttention(AttentionPerturbation):
    """Attention map (1 - alpha) A + alpha I; alpha = 0 changes nothing, alpha = 1 is `IdentityAttention`."""

    static = True

    def __init__(self, alpha: float = 0.5, *, layers: Sequence[str] | None = None) -> None:
        """`alpha` in [0, 1]; `layers`: attention cores.

        Raises:
            ValueError: if `alpha` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= alpha <= 1:
            raise ValueError(f"SoftIdentityAttention needs alpha between 0 (off) and 1 (identity), got {alpha}")
        self.alpha = alpha

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return a core between `module` and its values."""
        return _SoftIdentityCore(module, self.alpha) if self.alpha else module


class PerturbedAttentionGuidance(Guided):
    """PAG, D_pag + w (D - D_pag), D_pag with identity attention in the chosen layers. Two evaluations; needs attention.

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
