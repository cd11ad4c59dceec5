"""Gaussian blur of a row of cells as a matrix, with the kernel rule of smoothed energy guidance.

Hong 2024, "Smoothed Energy Guidance", https://arxiv.org/abs/2408.00760.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["blur_matrix", "kernel_size"]


def kernel_size(sigma: float, size: int) -> int:
    """Number of taps, odd: ceil(6 sigma) rounded up to odd, at most size + 1 - (size mod 2).

    >>> [kernel_size(sigma, 8) for sigma in (0.0, 0.1, 0.5, 1.0, 1.2, 10.0)], kernel_size(10.0, 7)
    ([1, 1, 3, 7, 9, 9], 7)
    """
    whole = math.ceil(6 * min(sigma, size))
    return min(whole + 1 - whole % 2, size + 1 - size % 2)


def blur_matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    """K `(size, size)`, rows of sum 1, so that K x blurs the cells x `(size, *)`; dtype and device of `like`.

    Taps exp(-(i / sigma)^2 / 2) at i = -(n - 1) / 2 ... (n - 1) / 2 with n = `kernel_size`, over their sum; cells
    outside are the reflected ones, the border cell itself not repeated. sigma = infinity is the mean, K = 1 / size.
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
