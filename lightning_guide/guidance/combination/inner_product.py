"""Inner products and norms of samples, over everything but the batch.

In float64, so that neither the squares of half precision overflow nor those of small differences vanish.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import expand

__all__ = ["TINY", "dot", "norm"]

TINY = 1e-60
"""What stands for 0 in a denominator: far below any norm that float32 can hold, with a square that float64 can."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, float64, `(B, 1, ..., 1)` for `a` and `b` (B, *)."""
    return expand(torch.linalg.vecdot(a.flatten(1).double(), b.flatten(1).double()), a)


def norm(a: Tensor) -> Tensor:
    """|a| of each sample, float64, `(B, 1, ..., 1)` for `a` (B, *)."""
    return torch.linalg.vector_norm(a.double(), dim=list(range(1, a.ndim)), keepdim=True)
