"""Guidance by skipped attention: the cores of the negative return nothing.

Hyung et al. 2024, "Spatiotemporal Skip Guidance", https://arxiv.org/abs/2411.18664, where it is one of two ways to skip
a layer; the other one, the whole block, is `SkipBlocks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combination import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbed import Perturbation, Perturbed
from lightning_guide.guidance.weights import WeightSchedule

__all__ = ["SkipAttention", "SkipAttentionGuidance"]


class _Nothing(nn.Module):
    """A v = 0."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return torch.zeros_like(v)


class SkipAttention(Perturbation):
    """Attention map A = 0: the core returns zeros, and nothing is added to the residual stream but an output bias.

    The magnitude-preserving sum of the EDM2 U-Net still shrinks the stream then, by (1 - t) / sqrt((1 - t)^2 + t^2) =
    .92 at its t = .3. `SkipBlocks(layers=["decoder.*_in0.attention"])` hands the stream through as it is.
    """

    kind = "attention"

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Zeros."""
        return _Nothing()


class SkipAttentionGuidance(Guided):
    """D_skip + w (D - D_skip) with `SkipAttention`. Two evaluations; needs attention."""

    def __init__(
        self,
        weight: float | WeightSchedule = 2.0,
        *,
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`layers`: attention cores by name or pattern; None: the default of the architecture."""
        negative = Perturbed([SkipAttention(layers=layers)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
