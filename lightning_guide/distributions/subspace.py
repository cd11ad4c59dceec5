"""Gaussian data on a linear subspace, the synthetic benchmark of gradient guidance, with its exact denoiser.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, section 6.1: x = A u with A (D, d) orthonormal and u ~ N(0, I_d),
D = 64, d = 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, expand
from lightning_guide.seeds import check_seed, mix
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Direction", "SubspaceGaussian", "basis"]


def basis(dimension: int, subspace: int, seed: int = 0) -> Tensor:
    """Return A (D, d), float64, with orthonormal columns, uniformly distributed over `seed`.

    Raises:
        ValueError: unless 1 <= d <= D.
    """
    if not 1 <= subspace <= dimension:
        raise ValueError(f"a subspace needs 1 <= its dimension <= {dimension}, got {subspace}")
    generator = torch.Generator().manual_seed(mix("subspace", check_seed(seed), dimension, subspace))
    q, r = torch.linalg.qr(torch.randn(dimension, subspace, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()  # the sign makes the distribution uniform


class SubspaceGaussian(Denoiser):
    """Gaussian on a subspace: x = A u, u ~ N(0, I_d), with the exact denoiser D(x) = A A^T x / (1 + sigma^2)."""

    basis: Tensor

    def __init__(self, dimension: int = 64, subspace: int = 16, *, seed: int = 0) -> None:
        """Set the dimensions D of the space and d of the subspace; `seed` determines A.

        Raises:
            ValueError: unless 1 <= d <= D.
        """
        super().__init__()
        self.data_shape, self.num_classes = (dimension,), 0
        self.sigma_data = (subspace / dimension) ** 0.5
        self.register_buffer("basis", basis(dimension, subspace, seed))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D(x) (B, D) of `x` (B, D)."""
        a = self.basis.to(x)
        return (x @ a) @ a.T / (1 + expand(sigma.to(x), x) ** 2)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` points (count, D), float32, and their coordinates u (count, d)."""
        u = torch.randn(count, self.basis.shape[1], generator=generator, dtype=torch.float64, device=generator.device)
        return (u @ self.basis.T).float(), u


class Direction(HasRecipe):
    """Unit vector theta (D,) with |theta off the subspace| = `off_ratio` |theta on it|.

    The theta_1 of the paper has off_ratio = 0, its theta_2 off_ratio = 9, so that |A^T theta| = 1 / sqrt(82) = 0.1104.
    """

    def __init__(self, dimension: int = 64, subspace: int = 16, *, off_ratio: float = 9.0, seed: int = 0) -> None:
        """Set `dimension`, `subspace` and `seed` of the `SubspaceGaussian`.

        Raises:
            ValueError: if `off_ratio` is negative, or positive although the subspace is the whole space.
        """
        if off_ratio < 0 or (off_ratio > 0 and dimension == subspace):
            raise ValueError(f"a direction needs off_ratio >= 0, or 0 if d = D; got {off_ratio}")
        self.dimension, self.subspace, self.off_ratio, self.seed = dimension, subspace, off_ratio, seed

    @property
    def vector(self) -> Tensor:
        """Theta (D,), float64."""
        a = basis(self.dimension, self.subspace, self.seed)
        generator = torch.Generator().manual_seed(mix("direction", self.seed))
        z = torch.randn(2, self.dimension, generator=generator, dtype=torch.float64)
        on = a @ (a.T @ z[0])
        theta = on / on.norm()
        if self.off_ratio:
            away = z[1] - a @ (a.T @ z[1])
            theta = (theta + self.off_ratio * away / away.norm()) / (1 + self.off_ratio**2) ** 0.5
        return theta
