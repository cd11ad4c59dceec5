"""A variant of perturbed-attention guidance: the attention map blurred as if it were a picture.

Ahn et al. 2024, https://arxiv.org/abs/2403.17377.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.attention.core import AttentionPerturbation, ChangedMap
from lightning_guide.guidance.attention.gaussian import blur_matrix, kernel_size

__all__ = ["BlurredAttention"]


class BlurredAttention(AttentionPerturbation):
    """K A K^T over its row sums: the map A (N, N) blurred over queries and keys, in the order of the tokens.

    K is `blur_matrix` of N cells; sigma = .8 gives 5 taps. sigma <= 1/6 changes nothing, sigma = infinity is uniform
    attention. Neighbours here are neighbours in the sequence, for a picture those of the same row.
    """

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
        """The module with its map blurred."""
        if math.isfinite(self.sigma) and kernel_size(self.sigma, 3) == 1:
            return module

        def change(A: Tensor) -> Tensor:
            K = blur_matrix(A.shape[-1], self.sigma, A)
            A = K @ A @ K.mT
            return A / A.sum(-1, keepdim=True)

        return ChangedMap(module, change)
