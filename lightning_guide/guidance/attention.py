"""Replacement attention cores, and cores around another core: with other queries, or with another attention map.

A core is linear in its values, so core(q, k, I) is its attention map A `(B, heads, N, M)`. The map of any core can be
read, changed and applied to the values in this way, at the cost of the memory of the map. The first N columns are the
tokens of the image, whose attention to each other is perturbed; those of texts keep their part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_guide.guidance.perturbation import Replacement
from lightning_guide.network import Network
from lightning_guide.networks.attention import AttentionCore, TextReader
from lightning_guide.pretrained.diffusers_attention import check_core
from lightning_guide.utils.modules import nearest_layers

__all__ = ["AttentionPerturbation", "ChangedMap", "ChangedQueries", "identity_values", "text_readers"]


Size = tuple[int, int] | None  # (height, width) of the token grid


class AttentionPerturbation(Replacement):
    """Base of perturbations that replace attention cores (`AttentionCore`)."""

    kind = "attention"

    def chosen(self, network: Network) -> list[str]:
        """Return the names of the attention cores of `network` that are replaced.

        Raises:
            ValueError: if a layer is not an attention core, or one that is not called.
        """
        names = super().chosen(network)
        for name in names:
            if not isinstance(network.get_submodule(name), AttentionCore):
                cores = [other for other, module in network.named_modules() if isinstance(module, AttentionCore)]
                raise ValueError(
                    f"{type(self).__name__} replaces attention cores; {name} is not one, "
                    f"those of this {type(network).__name__} are {nearest_layers(cores, name)}"
                )
            check_core(network, name)
        return names


class ChangedQueries(AttentionCore):
    """core(change(q, size), k, v): attention with other queries `(B, heads, N, d)`."""

    def __init__(self, core: nn.Module, change: Callable[[Tensor, Size], Tensor]) -> None:
        super().__init__()
        self.core, self.change = core, change

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        """`(B, heads, N, d)`."""
        return self.core(self.change(q, size), k, v, size)


class ChangedMap(AttentionCore):
    """change(A) v with the map A `(B, heads, N, M)` of the core; row i of A holds the weights of token i."""

    def __init__(self, core: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.core, self.change = core, change

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        """`(B, heads, N, d)`."""
        return self.change(self.core(q, k, identity_values(v), size)) @ v


def identity_values(v: Tensor) -> Tensor:
    """Return I `(B, heads, M, M)` in place of the values `v` (B, heads, M, d): attention to it is the map."""
    M = v.shape[-2]
    return torch.eye(M, dtype=v.dtype, device=v.device).expand(*v.shape[:2], M, M)


def text_readers(network: Network, who: str) -> list[str]:
    """Return the names of all `TextReader` of `network`; `who` begins the message.

    Raises:
        ValueError: if there is none, or one that is not called.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, TextReader)]
    if not names:
        raise ValueError(
            f"{who} changes how attention reads texts; this {type(network).__name__} has no such attention"
        )
    for name in names:
        check_core(network, name)
    return names
