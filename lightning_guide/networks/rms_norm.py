"""Division by the root mean square (RMS), with a derivative of few kernels.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2: the pixel norm, the weights and the queries, keys and
values of the EDM2 U-Net.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["EPSILON", "Normalized", "norm", "normalize", "pixel_norm"]


EPSILON = 1e-4


class Normalized(torch.autograd.Function):
    """gain x / d with d = (1e-4 + |x| / root) / scale, |x| the norm over the axes `dim` and root^2 the number of terms.

    Three kernels, and one for a gain: |x|, d and the quotient, which is written in the dtype and memory layout asked
    for. With G the gradient of the result and r = <G, x>, that of x is gain (G - r x / (scale root |x| d)) / d, and
    that of the gain is the sum of r / d.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor | None,
        dim: tuple[int, ...],
        scale: float,
        dtype: torch.dtype,
        layout: torch.memory_format,
    ) -> Tensor:
        length, divisor = _length_and_divisor(x, dim, scale)
        ctx.save_for_backward(x, gain, length, divisor)
        ctx.dim, ctx.scale = dim, scale
        result = torch.empty_like(x, dtype=dtype, memory_format=layout)
        if gain is None:
            return torch.div(x, divisor, out=result)
        return torch.mul(x, gain / divisor, out=result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, gain, length, divisor = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            length, divisor = _length_and_divisor(x, ctx.dim, ctx.scale)
        r = (gradients[0] * x).sum(ctx.dim, keepdim=True, dtype=length.dtype)
        radial = r / (length * divisor).clamp(min=torch.finfo(length.dtype).tiny)  # x = 0 has r = 0
        root = math.sqrt(x.numel() / length.numel())
        tangent = torch.addcmul(gradients[0], x, radial, value=-1 / (ctx.scale * root))
        if gain is None:
            return (tangent / divisor).to(x.dtype), *[None] * 5
        return (tangent * (gain / divisor)).to(x.dtype), (r / divisor).sum().to(gain.dtype), *[None] * 4


def normalize(
    x: Tensor, dim: int | tuple[int, ...] | None = None, *, layout: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Return x / (1e-4 + RMS of x over `dim`), with the shape and dtype of `x`; the RMS is taken in at least float32.

    `dim` defaults to all axes but the first: one norm for each sample of a batch, or each row of a weight. `layout` is
    that of the result in memory.
    """
    axes = tuple(range(1, x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else dim
    return Normalized.apply(x, None, axes, 1.0, x.dtype, layout)


def pixel_norm(x: Tensor) -> Tensor:
    """Apply `normalize` to `x` (B, C, *) over the channels, separately for each position."""
    return normalize(x, dim=1)


def norm(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return the Euclidean norm of `x` over `dim`, kept with size 1, accumulated in at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=dtype)


def _length_and_divisor(x: Tensor, dim: tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Return |x| over `dim`, and (1e-4 + RMS) / scale."""
    length = norm(x, dim)
    root = math.sqrt(x.numel() / length.numel())
    return length, torch.rsub(length, EPSILON / scale, alpha=-1 / (scale * root))  # an affine map in one kernel
