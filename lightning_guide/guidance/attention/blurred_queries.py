"""Smoothed energy guidance: the negative attends with blurred queries.

Hong 2024, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention",
https://arxiv.org/abs/2408.00760. Blurring the logits over the positions of the queries is blurring the queries,
G * (Q K^T) = (G * Q) K^T; keys and values stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention.core import AttentionPerturbation, ChangedQueries
from lightning_guide.guidance.attention.gaussian import blur_matrix, kernel_size
from lightning_guide.guidance.combination import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbed import Perturbed
from lightning_guide.guidance.weights import WeightSchedule

__all__ = ["BlurredQueries", "SmoothedEnergyGuidance", "blurred"]


def blurred(q: Tensor, grid: tuple[int, int] | None, sigma: float) -> Tensor:
    """Gaussian blur of `q` (B, heads, N, d) as pictures of `grid` = (H, W) tokens, N = H W; see `blur_matrix`.

    Raises:
        ValueError: if there is no grid, or the tokens do not fill it.
    """
    if grid is None:
        raise ValueError("SEG needs a 2D token grid; this network has none")
    H, W = grid
    if q.shape[-2] != H * W:
        raise ValueError(f"SEG needs one token for each cell of the {H}x{W} grid, got {q.shape[-2]} tokens")
    picture = q.unflatten(-2, (H, W))  # (B, heads, H, W, d)
    rows = (blur_matrix(H, sigma, q) @ picture.flatten(-2)).unflatten(-1, (W, -1))
    return (blur_matrix(W, sigma, q) @ rows).flatten(-3, -2)


class BlurredQueries(AttentionPerturbation):
    """softmax((G_sigma * q) k^T / sqrt(d)) v, the queries blurred over the token grid H x W, of any aspect.

    The blurred queries are not normalised again, also where a network gave them unit length: they shrink, and that
    flattens the map, too, as in the paper's derivation. sigma <= 1/6 changes nothing.
    """

    def __init__(self, sigma: float = math.inf, *, layers: Sequence[str] | None = None) -> None:
        """`sigma` in tokens; infinity (``.inf`` in YAML) puts the spatial mean in the place of every query.

        The paper's code takes every sigma above 9999 for infinity; here a finite one always has the capped kernel.

        Raises:
            ValueError: if `sigma` is negative or not a number.
        """
        super().__init__(layers=layers)
        if not sigma >= 0:
            raise ValueError(f"SEG needs sigma >= 0, in tokens, or infinity, got {sigma}")
        self.sigma = sigma

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """The module behind a blur."""
        if math.isfinite(self.sigma) and kernel_size(self.sigma, 3) == 1:
            return module
        return ChangedQueries(module, partial(blurred, sigma=self.sigma))


class SmoothedEnergyGuidance(Guided):
    """D_seg + w (D - D_seg), D_seg with blurred queries. Two evaluations; needs attention on a 2D token grid.

    The paper's formula, gamma D - (gamma - 1) D_seg at gamma = 3, is the default w = 3. The authors' code adds 3 times
    the difference instead, which is w = 4.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 3.0,
        *,
        sigma: float = math.inf,
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`sigma` of the blur in tokens, ``.inf`` for the mean; `layers`: attention cores."""
        negative = Perturbed([BlurredQueries(sigma, layers=layers)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
