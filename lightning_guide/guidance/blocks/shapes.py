"""Which blocks of a network hand on what they get in the shape they got it, found by running it once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Network
from lightning_guide.guidance.around import Around
from lightning_guide.module_tree import rebuilt

__all__ = ["Shapes", "shapes"]

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class _Noting(Around):
    """Calls a block and notes the shapes of what goes in and what comes out."""

    def __init__(self, inner: nn.Module, noted: dict[str, Shapes], name: str) -> None:
        super().__init__(inner)
        self.noted, self.name = noted, name

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        y = self.inner(x, *arguments)
        self.noted[self.name] = (tuple(x.shape), tuple(y.shape))
        return y


@torch.no_grad()
def shapes(network: Network, names: Sequence[str]) -> dict[str, Shapes]:
    """Shapes of the first argument and of the result of each of the submodules `names`, for one sample.

    Costs one evaluation of a single sample, in a tree apart.
    """
    noted: dict[str, Shapes] = {}
    stand_ins = [(name, lambda block, name=name: _Noting(block, noted, name)) for name in names]
    tree = rebuilt(network, stand_ins).eval()
    like = next(network.parameters())
    tree(like.new_zeros(1, *network.data_shape), like.new_zeros(1), tree.embed(None, 1))
    return noted
