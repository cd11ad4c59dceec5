"""Ablation of perturbed-attention guidance (PAG): attention maps that are blurred, noisy, masked or zero.

Ahn et al. 2024, https://arxiv.org/abs/2403.17377, table 9. A masked entry before the softmax (logit -infinity) is a
masked entry of the map A whose rows are then scaled back to a sum of 1. Masks are drawn for each sample, head and call.
A zero map is skipped attention: Hyung et al. 2024, "Spatiotemporal Skip Guidance", https://arxiv.org/abs/2411.18664,
where it is one of two ways to skip a layer; the other one, the whole block, is `SkipBlocks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.attention import AttentionPerturbation, ChangedMap
from lightning_guide.guidance.negatives.seg import blur_matrix, kernel_size
from lightning_guide.networks.attention import AttentionCore

__all__ = ["BlurredAttention", "NoisyAttention", "OffDiagonalMask", "RandomMask", "SkipAttention"]


class BlurredAttention(AttentionPerturbation):
    """K A K^T over its row sums: the map A (N, N) blurred over queries and keys, in the order of the tokens.

    In joint attention the weights of texts are blurred over queries alone.

    K is `blur_matrix` of N cells; sigma = 0.8 gives 5 taps. sigma <= 1/6 changes nothing, sigma = infinity is uniform
    attention. Neighbors are neighbors in the sequence, in an image those of the same row.
    """

    static = True

    def __init__(self, sigma: float = 0.8, *, layers: Sequence[str] | None = None) -> None:
        """`sigma` of the blur in tokens; `layers`: attention cores.

        Raises:
            ValueError: if `sigma` is negative or not a number.
        """
        super().__init__(layers=layers)
        if not sigma >= 0:
            raise ValueError(f"BlurredAttention needs sigma >= 0, in tokens, or infinity, got {sigma}")
        self.sigma = sigma

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the core with its map blurred."""
        if math.isfinite(self.sigma) and kernel_size(self.sigma, 3) == 1:
            return module

        def change(A: Tensor) -> Tensor:
            N = A.shape[-2]
            K = blur_matrix(N, self.sigma, A)
            A = K @ A
            A = torch.cat([A[..., :N] @ K.mT, A[..., N:]], -1)
            return A / A.sum(-1, keepdim=True)

        return ChangedMap(module, change)


class NoisyAttention(AttentionPerturbation):
    """A + scale n, n standard normal for each sample, head, pair of tokens and call; rows lose their sum of 1.

    scale = 0 changes nothing.
    """

    def __init__(self, scale: float = 0.1, *, layers: Sequence[str] | None = None) -> None:
        """`scale` of the noise, where a row of N entries sums to 1; `layers`: attention cores.

        Raises:
            ValueError: if `scale` is negative or not finite.
        """
        super().__init__(layers=layers)
        if not (scale >= 0 and math.isfinite(scale)):
            raise ValueError(f"NoisyAttention needs a finite scale >= 0, got {scale}")
        self.scale = scale

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the core with noise on its map."""

        def change(A: Tensor) -> Tensor:
            heads, N, M = A.shape[1:]
            noise = trajectory.seeds.normal("attention noise", (heads, N, N), A.device).to(A.dtype)
            return A + self.scale * F.pad(noise, (0, M - N))

        return ChangedMap(module, change) if self.scale else module


class RandomMask(AttentionPerturbation):
    """A_ij m_ij / sum_j A_ij m_ij with m_ij = 0 with `probability`, else 1; a fully masked row attends to nothing.

    probability = 0 changes nothing.
    """

    def __init__(self, probability: float = 0.5, *, layers: Sequence[str] | None = None) -> None:
        """`probability` of a masked entry, in [0, 1]; `layers`: attention cores.

        Raises:
            ValueError: if `probability` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= probability <= 1:
            raise ValueError(f"{type(self).__name__} needs a probability between 0 (off) and 1, got {probability}")
        self.probability = probability

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the core with its map masked."""

        def change(A: Tensor) -> Tensor:
            heads, N, M = A.shape[1:]
            kept = trajectory.seeds.uniform("attention mask", (heads, N, N), A.device) >= self.probability
            return self.masked(A, F.pad(kept, (0, M - N), value=True))

        return ChangedMap(module, change) if self.probability else module

    def masked(self, A: Tensor, kept: Tensor) -> Tensor:
        """Return the map `A` (B, heads, N, M) where `kept` (B, heads, N, M), its rows scaled back to sum 1."""
        A = A * kept
        return A / A.sum(-1, keepdim=True).clamp(min=torch.finfo(A.dtype).tiny)


class OffDiagonalMask(RandomMask):
    """`RandomMask` that never masks the diagonal; probability = 1 is `IdentityAttention`."""

    def masked(self, A: Tensor, kept: Tensor) -> Tensor:
        """Return the masked map with the diagonal kept, and above 0, so that every row keeps a positive sum."""
        diagonal = torch.eye(*A.shape[-2:], dtype=torch.bool, device=A.device)
        return super().masked(torch.where(diagonal, A.clamp(min=torch.finfo(A.dtype).tiny), A), kept | diagonal)


class _ZeroCore(AttentionCore):
    """A = 0."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        return torch.zeros_like(v[..., : q.shape[-2], :])


class SkipAttention(AttentionPerturbation):
    """Attention map A = 0: the core returns zeros, and nothing is added to the residual stream but an output bias.

    The magnitude-preserving sum of the EDM2 U-Net still scales the stream, by (1 - t) / sqrt((1 - t)^2 + t^2) = 0.92 at
    its t = 0.3. `SkipBlocks(layers=["decoder.*_in0.attention"])` leaves the stream unchanged.
    """

    static = True

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return a core that returns zeros."""
        return _ZeroCore()
