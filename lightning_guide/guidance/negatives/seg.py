"""Smoothed energy guidance (SEG): the attention of the negative has blurred queries.

Hong 2024, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention",
https://arxiv.org/abs/2408.00760. Blurring the logits over the positions of the queries is blurring the queries,
G * (Q K^T) = (G * Q) K^T; keys and values are not changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention import AttentionPerturbation, ChangedQueries
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["BlurredQueries", "SmoothedEnergyGuidance", "blur_matrix", "blur_queries", "kernel_size"]


def kernel_size(sigma: float, size: int) -> int:
    """Return the number of taps, odd: ceil(6 sigma) rounded up to odd, at most size + 1 - (size mod 2).

    Examples:
        >>> [kernel_size(sigma, 8) for sigma in (0.0, 0.1, 0.5, 1.0, 1.2, 10.0)], kernel_size(10.0, 7)
        ([1, 1, 3, 7, 9, 9], 7)
    """
    whole = math.ceil(6 * min(sigma, size))
    return min(whole + 1 - whole % 2, size + 1 - size % 2)


def blur_matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return K `(size, size)`, rows of sum 1, so that K x blurs the cells x `(size, *)`, in dtype and device of `like`.

    Taps exp(-(i / sigma)^2 / 2) at i = -(n - 1) / 2 ... (n - 1) / 2 with n = `kernel_size`, over their sum; cells
    outside are reflected, without repeating the border cell. sigma = infinity is the mean, K = 1 / size.
    """
    if math.isinf(sigma):
        return like.new_full((size, size), 1 / size)
    reach = kernel_size(sigma, size) // 2
    if reach == 0:
        return torch.eye(size, dtype=like.dtype, device=like.device)
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    taps = (-0.5 * (offsets.to(torch.promote_types(like.dtype, torch.float32)) / sigma) ** 2).exp()
    taps = taps / taps.sum()
    last = size - 1
    source = last - (last - (torch.arange(size, device=like.device)[:, None] + offsets).abs()).abs()  # (size, taps)
    matrix = torch.zeros(size, size, dtype=taps.dtype, device=like.device)
    return matrix.scatter_add(1, source, taps.expand(size, -1)).to(like.dtype)


def blur_queries(q: Tensor, size: tuple[int, int] | None, sigma: float) -> Tensor:
    """Return `q` (B, heads, N, d) blurred as images of `size` = (H, W) tokens, N = H W, by `blur_matrix`."""
    if size is None:
        raise ValueError("SEG needs a 2D token grid; this network has no grid")
    H, W = size
    if q.shape[-2] != H * W:
        raise ValueError(f"SEG needs one token for each cell of the {H}x{W} grid, got {q.shape[-2]} tokens")
    image = q.unflatten(-2, (H, W))  # (B, heads, H, W, d)
    rows = (blur_matrix(H, sigma, q) @ image.flatten(-2)).unflatten(-1, (W, -1))
    return (blur_matrix(W, sigma, q) @ rows).flatten(-3, -2)


class BlurredQueries(AttentionPerturbation):
    """softmax((G_sigma * q) k^T / sqrt(d)) v, the queries blurred over the token grid H x W, of any aspect.

    The blurred queries are not normalized again, not even those of unit length: they shrink, which flattens the map, as
    in the paper's derivation. sigma <= 1/6 changes nothing.
    """

    static = True

    def __init__(self, sigma: float = math.inf, *, layers: Sequence[str] | None = None) -> None:
        """`sigma` in tokens; infinity (``.inf`` in YAML) replaces every query by the spatial mean.

        The paper's code treats sigma above 9999 as infinity; here every finite sigma has the capped kernel.

        Raises:
            ValueError: if `sigma` is negative or not a number.
        """
        super().__init__(layers=layers)
        if not sigma >= 0:
            raise ValueError(f"SEG needs sigma >= 0, in tokens, or infinity, got {sigma}")
        self.sigma = sigma

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the core with blurred queries."""
        if math.isfinite(self.sigma) and kernel_size(self.sigma, 3) == 1:
            return module
        return ChangedQueries(module, partial(blur_queries, sigma=self.sigma))


class SmoothedEnergyGuidance(Guided):
    """SEG, D_seg + w (D - D_seg), D_seg with blurred queries. Two evaluations; needs attention on a 2D token grid.

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
