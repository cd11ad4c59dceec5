"""What takes the place of attention cores; cores around another core: with other queries, or with another map.

A core is linear in its values, so that core(q, k, I) is its attention map A `(B, heads, N, N)`: whatever the core
computes, its map can be had, changed, and applied to the values. That costs the memory of the map.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_guide.guidance.perturbation import Replacement
from lightning_guide.preconditioning import Network

__all__ = ["AttentionPerturbation", "ChangedMap", "ChangedQueries"]


Grid = tuple[int, int] | None


class AttentionPerturbation(Replacement):
    """Base of what takes the place of attention cores: modules called as core(q, k, v, grid)."""

    kind = "attention"

    def chosen(self, network: Network) -> list[str]:
        """As `Perturbation.chosen`.

        Raises:
            ValueError: if a layer is no attention core.
        """
        names = super().chosen(network)
        for name in names:
            if not _is_core(network.get_submodule(name)):
                cores = [other for other, module in network.named_modules() if _is_core(module)]
                raise ValueError(
                    f"{type(self).__name__} takes the place of attention cores; {name} is none, "
                    f"those of this {type(network).__name__} are {', '.join(cores) or 'none'}"
                )
        return names


def _is_core(module: nn.Module) -> bool:
    """Whether `module` is called with four arguments, as (q, k, v, grid)."""
    return len(inspect.signature(module.forward).parameters) == 4


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
