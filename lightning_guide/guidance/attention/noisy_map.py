"""The ablation of perturbed-attention guidance: attention maps with additive noise.

Ahn et al. 2024, https://arxiv.org/abs/2403.17377, table 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.attention.core import AttentionPerturbation, ChangedMap

__all__ = ["NoisyAttention"]


class NoisyAttention(AttentionPerturbation):
    """A + scale n, n standard normal for each sample, head, pair of tokens and call; rows keep no sum of 1.

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
        """The module with noise on its map."""

        def change(A: Tensor) -> Tensor:
            return A + self.scale * trajectory.seeds.normal("attention noise", A.shape[1:], A.device).to(A.dtype)

        return ChangedMap(module, change) if self.scale else module
