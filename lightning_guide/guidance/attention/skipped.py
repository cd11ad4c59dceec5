"""Guidance by skipped attention: the cores of the negative return nothing.

Hyung et al. 2024, "Spatiotemporal Skip Guidance", https://arxiv.org/abs/2411.18664, where it is one of two ways to skip
a layer; the other one, the whole block, is `SkipBlocks`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.attention.core import AttentionPerturbation

__all__ = ["SkipAttention"]


class _Nothing(nn.Module):
    """A v = 0."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return torch.zeros_like(v)


class SkipAttention(AttentionPerturbation):
    """Attention map A = 0: the core returns zeros, and nothing is added to the residual stream but an output bias.

    The magnitude-preserving sum of the EDM2 U-Net still shrinks the stream then, by (1 - t) / sqrt((1 - t)^2 + t^2) =
    .92 at its t = .3. `SkipBlocks(layers=["decoder.*_in0.attention"])` hands the stream through as it is.
    """

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Zeros."""
        return _Nothing()
