"""Residual MLP for points with a parallel linear path: the score network of the gradient-guidance experiments.

The exact score of a Gaussian is linear in x, with coefficients that depend on the noise level. The linear path contains
this class (that of the paper's analysis, https://arxiv.org/abs/2404.14743, section 5) and extrapolates correctly; an
MLP alone learns the score only near the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.network import Network
from lightning_guide.networks.magnitude_preserving import MPFourier

__all__ = ["PointMLP"]


class PointMLP(Network):
    """Residual MLP for points x (B, D), with a linear path, without labels.

    F(x, c_noise) = W_out silu(h_L) + U (a(c_noise) * (V x)), h_0 = W_in [x, e], h_l = h_{l-1} + W_l silu(h_{l-1}).

    e are Fourier features of c_noise and a is linear in e. Submodules:
    ``fourier``, ``input``, ``layers`` (one for each l) and ``output``; ``down`` V, ``gate`` a and ``up`` U, with bias,
    of the linear path. Both paths are initially zero.
    """

    def __init__(
        self, data_shape: Sequence[int], *, width: int = 256, layers: int = 3, features: int = 32, rank: int = 0
    ) -> None:
        """Set `data_shape` (D,), `width` of h, `layers` L, noise `features` and the `rank` of U (0: no linear path).

        Raises:
            ValueError: if the data are not points, or a size is not positive.
        """
        super().__init__()
        if len(data_shape) != 1 or min(*data_shape, width, layers, features, rank + 1) < 1:
            raise ValueError(
                f"PointMLP needs data_shape (D,) and positive sizes, got {tuple(data_shape)}, {width}, {layers} and "
                f"{features}"
            )
        self.data_shape, self.num_classes = tuple(data_shape), 0
        self.fourier = MPFourier(features)
        self.input = nn.Linear(data_shape[0] + features, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.output = nn.Linear(width, data_shape[0])
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.rank = rank
        if rank:
            self.down = nn.Linear(data_shape[0], rank, bias=False)
            self.gate, self.up = nn.Linear(features, rank), nn.Linear(rank, data_shape[0])
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Return None: there are no labels."""
        return None

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F (B, D) for the scaled input `x` (B, D) and `c_noise` (B,)."""
        features = self.fourier(c_noise).to(x)
        h = self.input(torch.cat([x, features], dim=1))
        for layer in self.layers:
            h = h + layer(F.silu(h))
        mlp = self.output(F.silu(h))
        return mlp + self.up(self.gate(features) * self.down(x)) if self.rank else mlp
