"""Models of guidance-free training (GFT): a denoiser with the share beta of the condition as a further input.

Chen et al. 2025, "Visual Generation Without Guidance", https://arxiv.org/abs/2501.15420. beta = 1 is the conditional
model, smaller ones are guided: the trained D(x, c, beta) is D_u + (D_c - D_u) / beta.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser, DerivedDenoiser
from lightning_guide.preconditioning import Preconditioned

__all__ = ["BetaConditioned"]


class BetaConditioned(DerivedDenoiser):
    """D(x, sigma, condition, beta): the network's embedding of the condition plus W (silu(V u + b) - silu(b)).

    u = (1 - beta, ln(1 / beta)), with beta of at least 0.01 in the logarithm. At beta = 1 nothing is added, and W is
    initially zero: a trained `denoiser` starts unchanged, under every beta. For training by `GuidanceFreeLoss` and
    sampling by `GuidanceFree`; without beta, and so under all other guidances, it is the conditional model.
    """

    def __init__(self, denoiser: Denoiser, *, width: int = 64) -> None:
        """Give `denoiser` the input beta, by a hidden layer of `width`.

        Raises:
            ValueError: unless it is a model with a network that embeds its condition as one vector (B, E): one of
                labels, or of texts that it averages.
        """
        super().__init__()
        embedding = denoiser.network.embed(None, 1) if isinstance(denoiser, Preconditioned) else None
        if embedding is None or embedding.ndim != 2 or not embedding.is_floating_point():
            kind = type(denoiser.network if isinstance(denoiser, Preconditioned) else denoiser).__name__
            raise ValueError(
                f"BetaConditioned adds to the embedding (B, E) of a condition, which {kind} does not have here; "
                "expected Preconditioned with a network with labels"
            )
        self.denoiser = denoiser
        self.beta_input = nn.Linear(2, width)
        self.beta_output = nn.Linear(width, embedding.shape[1], bias=False)
        nn.init.zeros_(self.beta_output.weight)

    @property
    def underlying(self) -> Denoiser:
        """The denoiser."""
        return self.denoiser

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, *, beta: Tensor | None = None
    ) -> Tensor:
        """Return D (B, *data_shape) for `beta` (B,) in (0, 1]; None: 1, the conditional model."""
        if beta is None:
            return self.denoiser(x, sigma, condition)
        u = torch.stack([1 - beta, -beta.clamp(min=0.01).log()], dim=1).to(self.beta_input.weight)
        hidden = F.silu(self.beta_input(u)) - F.silu(self.beta_input.bias)
        return self.denoiser(x, sigma, condition, added=self.beta_output(hidden))

    def constrain(self) -> None:
        """Project the parameters of the denoiser."""
        self.denoiser.constrain()
