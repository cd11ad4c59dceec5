"""The ablation of perturbed-attention guidance: attention maps with random gaps.

Ahn et al. 2024, https://arxiv.org/abs/2403.17377, table 9. A gap before the softmax (logit -infinity) is a gap in the
map A whose rows then get their sum of 1 back. Every sample, head and call has gaps of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.attention.core import AttentionPerturbation, ChangedMap

__all__ = ["OffDiagonalMask", "RandomMask"]


class RandomMask(AttentionPerturbation):
    """A_ij m_ij / sum_j A_ij m_ij with m_ij = 0 with `probability`, else 1; a row of gaps alone attends to nothing.

    probability = 0 changes nothing.
    """

    def __init__(self, probability: float = 0.5, *, layers: Sequence[str] | None = None) -> None:
        """`probability` of a gap, in [0, 1]; `layers`: attention cores.

        Raises:
            ValueError: if `probability` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= probability <= 1:
            raise ValueError(f"{type(self).__name__} needs a probability between 0 (off) and 1, got {probability}")
        self.probability = probability

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """The module with gaps in its map."""

        def change(A: Tensor) -> Tensor:
            return self.masked(A, trajectory.seeds.uniform("attention mask", A.shape[1:], A.device) >= self.probability)

        return ChangedMap(module, change) if self.probability else module

    def masked(self, A: Tensor, kept: Tensor) -> Tensor:
        """The map `A` (B, heads, N, N) where it is `kept` (B, heads, N, N), its rows of sum 1 again."""
        A = A * kept
        return A / A.sum(-1, keepdim=True).clamp(min=torch.finfo(A.dtype).tiny)


class OffDiagonalMask(RandomMask):
    """`RandomMask` that leaves the diagonal alone; probability = 1 is `IdentityAttention`."""

    def masked(self, A: Tensor, kept: Tensor) -> Tensor:
        """As above, with the diagonal kept, and never quite 0."""
        diagonal = torch.eye(A.shape[-1], dtype=torch.bool, device=A.device)
        return super().masked(torch.where(diagonal, A.clamp(min=torch.finfo(A.dtype).tiny), A), kept | diagonal)
