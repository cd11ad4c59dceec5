"""Low-rank adaptation (LoRA), Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.

The weights W of a frozen network become W + scale U V with trained U (out, rank), initialized to zero, and V
(rank, in), initialized at random, so that the adapted network initially equals the network. The sum is computed in
place of the weight itself, so every kind of layer with a weight can be adapted, also one that normalizes it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_guide.denoiser import Denoiser, DerivedDenoiser, Models
from lightning_guide.guidance.base import Reference
from lightning_guide.seeds import mix
from lightning_guide.utils.modules import names_of_layers

__all__ = ["LowRank"]


class _LowRankSum(nn.Module):
    """W -> W + scale (U V) reshaped, for a weight of `shape` (out, *)."""

    def __init__(self, shape: Sequence[int], rank: int, scale: float, seed: int) -> None:
        super().__init__()
        size = torch.Size(shape[1:]).numel()
        generator = torch.Generator().manual_seed(seed)
        self.scale = scale
        self.up = nn.Parameter(torch.zeros(shape[0], rank))
        self.down = nn.Parameter(torch.randn(rank, size, generator=generator) / size**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).reshape(weight.shape)


class LowRank(DerivedDenoiser):
    """Low-rank adaptation (LoRA): `denoiser` with frozen weights and trained low-rank additions to them."""

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        rank: int = 4,
        scale: float = 1.0,
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Adapt a copy of `denoiser`; a reference is first replaced by its model, see `resolve`.

        Args:
            denoiser: the model.
            rank: r; a layer with fewer than r rows or columns is not adapted.
            scale: factor of U V.
            layers: names of layers, or patterns with ``*``; None: all with a weight of two axes or more.
            seed: of V.

        Raises:
            ValueError: if `rank` is below 1, a name has no match, or no layer can be adapted.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"LowRank needs rank >= 1, got {rank}")
        self.rank, self.scale, self.layers, self.seed = rank, scale, layers, seed
        if isinstance(denoiser, Reference):
            self.denoiser: Denoiser = denoiser
            return
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False)
        adapted = [name for name, layer in self._chosen_layers() if self._adapt(name, layer)]
        if not adapted:
            raise ValueError(f"LowRank finds no layer of rank {rank} or more to adapt in a {type(denoiser).__name__}")

    def _chosen_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the chosen layers by name."""
        modules = dict(self.denoiser.named_modules())
        if self.layers is None:
            return list(modules.items())
        return [(name, modules[name]) for name in names_of_layers(self.denoiser, self.layers, "LowRank")]

    def _adapt(self, name: str, layer: nn.Module) -> bool:
        """Parametrize the weight of one layer, if it is large enough; return whether it was."""
        weight = layer._parameters.get("weight")
        if weight is None or weight.ndim < 2 or min(len(weight), weight[0].numel()) < self.rank:
            return False
        low_rank_sum = _LowRankSum(weight.shape, self.rank, self.scale, mix(self.seed, name)).to(weight)
        parametrize.register_parametrization(layer, "weight", low_rank_sum)
        return True

    @property
    def underlying(self) -> Denoiser:
        """The model."""
        return self.denoiser

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D (B, *data_shape)."""
        return self.denoiser(x, sigma, condition)

    def resolve(self, models: Models) -> Denoiser:
        """Return itself or, for a reference, the adaptation of its model with freshly initialized U and V."""
        if not isinstance(self.denoiser, Reference):
            return self
        options = {"rank": self.rank, "scale": self.scale, "layers": self.layers, "seed": self.seed}
        return LowRank(self.denoiser.resolve(models), **options)  # type: ignore[arg-type]
