"""Attention cores around another core: with other queries, or with another map.

A core is linear in its values, so that core(q, k, I) is its attention map A `(B, heads, N, N)`: whatever the core
computes, its map can be had, changed, and applied to the values. That costs the memory of the map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["ChangedMap", "ChangedQueries"]

Grid = tuple[int, int] | None


class ChangedQueries(nn.Module):
    """core(change(q, grid), k, v): the attention of other queries `(B, heads, N, d)`."""

    def __init__(self, core: nn.Module, change: Callable[[Tensor, Grid], Tensor]) -> None:
        super().__init__()
        self.core, self.change = core, change

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """`(B, heads, N, d)`."""
        return self.core(self.change(q, grid), k, v, grid)


class ChangedMap(nn.Module):
    """change(A) v with the map A `(B, heads, N, N)` of the core, whose row i says what token i attends to."""

    def __init__(self, core: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.core, self.change = core, change

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """`(B, heads, N, d)`."""
        N = v.shape[-2]
        identity = torch.eye(N, dtype=v.dtype, device=v.device).expand(*v.shape[:2], N, N)
        return self.change(self.core(q, k, identity, grid)) @ v
